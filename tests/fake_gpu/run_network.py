"""Compile a network, run it on the emulated GPU, compare with the reference executor.

    python -m tests.fake_gpu.run_network ARCH TARGET [MODEL [IMAGE_SIZE]]

MODEL is what `tvm_q4.compile` takes, for one image; without it, a small network. Prints one JSON
object.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests import small_network
from tests.fake_gpu.gpu import EmulatedGpu
from tvm_q4.compiler import compile_module
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.library import export_library, load
from tvm_q4.library.packing import cuda_sources
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.pipeline import to_integer
from tvm_q4.sample_input import sample_input
from tvm_q4.targets import parse_target
from tvm_q4.verification import verify


def main(
    arch: int, target: str, model: str | None = None, size: str | None = None
) -> dict[str, object]:
    """What came out of runs with and without a graph, from the host and from the device."""
    import tvm

    parsed = parse_target(target)
    assert isinstance(parsed, CudaTarget)
    module = small_network.quantized() if model is None else _load(model, size)
    compiled = compile_module(module, parsed)
    gpu = EmulatedGpu(arch, cuda_sources(compiled.executable.mod))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.so"
        export_library(compiled.executable, compiled.metadata, path)
        report: dict[str, object] = {}
        reference = ReferenceExecutor(to_integer(module))
        for graph in (False, True):
            library = load(path, cuda_graph=graph)
            equal = []
            for seed in range(3 if model is None else 1):
                x = sample_input(library.metadata, library.input.batch, dtype="float32", seed=seed)
                expected = np.asarray(reference.run(x))
                found = library.run(x)
                on_device = library.run(tvm.runtime.tensor(x, device=tvm.cuda(0))).numpy()
                equal += [np.array_equal(found, expected), np.array_equal(on_device, expected)]
            report["graph" if graph else "plain"] = equal
            report["family"], report["device"] = library.metadata["family"], library.device
            report["kernels"] = [call["kernel"] for call in library.metadata["calls"]]
        checked = verify(library, module)
        report |= {"bit_exact": checked["bit_exact"], "replayed": gpu.replayed}
        report |= {"error": str(gpu.error) if gpu.error else None}
        report["layers"] = {row["name"]: row["equal"] for row in checked["layers"]}
    return report


def _load(model: str, size: str | None) -> Any:
    from tvm_q4.frontend import load_model

    image_size = None if size is None else (int(size), int(size))
    return load_model(model, batch=1, image_size=image_size)


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), *sys.argv[2:])))
