"""Measure a bundle for GPUs on the emulated GPU, with the program that the bundle brings along.

    python -m tests.fake_gpu.measure_bundle ARCH

One candidate of one layer; prints what the bundle's worker answers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import tvm

from tests.fake_gpu.gpu import EmulatedGpu
from tests.tune import fakes
from tvm_q4._compat import find_libtvm_runtime
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.library.packing import cuda_sources, source_only
from tvm_q4.schedules.cuda.pipeline import tir_pipeline
from tvm_q4.tune import bundle_worker, write_bundle
from tvm_q4.tune.task import Task


def main(arch: int) -> dict[str, object]:
    """Facts of the device, and times and exactness of the candidate."""
    target = CudaTarget((arch,))
    task = fakes.tasks(target)[1][-1]
    gpu = EmulatedGpu(arch, _sources(task))
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_bundle(fakes.network(), bundle, target=target, trials=1, tasks=str(task.index))
        (entry,) = json.loads((bundle / "bundle.json").read_text())["tasks"]
        (candidate,) = entry["candidates"]
        for library in (bundle / "lib").iterdir():  # this process has loaded TVM's already
            library.unlink()
            library.symlink_to(Path(find_libtvm_runtime()).with_name(library.name))
        bundle_worker.FOLDER = bundle
        device = bundle_worker.Device("cuda")
        request = {"case": entry["case"], "folders": [candidate["folder"]]}
        measured = device.measure({**request, "rounds": 1, "burst_ms": 1e-6})
        return {**device.facts(), **measured, "launched": len(gpu.launches)}


def _sources(task: Task) -> list[str]:
    """CUDA source of a task's start."""
    func = task.rule.schedule(task.layer, task.target, task.space[task.start], task.symbol)
    with source_only():
        mod = tvm.IRModule({task.symbol: func})
        executable = tvm.compile(mod, target=task.target, tir_pipeline=tir_pipeline())
    return cuda_sources(executable.mod)


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
