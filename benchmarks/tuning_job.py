"""Jobs of `tuning.py` in worker processes: MetaSchedule's candidates, and kernels of two kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tvm
from tvm.target import Target

from tvm_q4.library.linker import find_compiler
from tvm_q4.tune.case import Case
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.time_job import Run, Sample, Timing, time_in_turn


def build(module: str, target: str, folder: str) -> str:
    """Build the function ``main`` of a module, as `tvm.ir.save_json` wrote it, into `folder`."""
    kernel = Kernel(Path(folder))
    kernel.folder.mkdir(parents=True)
    executable = tvm.compile(tvm.ir.load_json(module), target=Target(target))
    executable.export_library(str(kernel.library), cc=find_compiler())
    kernel.write("main", [], [])
    return folder


def time_mixed(kernels: Sequence[tuple[str, str]], timing: Timing) -> list[Sample]:
    """Check and time kernels in turn; each comes with the file of its own `Case`."""
    device = tvm.cpu()
    runs = []
    for folder, case_file in kernels:
        case = Case.load(Path(case_file))
        inputs = [tvm.runtime.tensor(array, device) for array in case.inputs]
        runs.append(Run(Kernel(Path(folder)), case, inputs, device, _load))
    return time_in_turn(runs, timing)


def _load(path: Path) -> tvm.runtime.Module:
    return tvm.runtime.load_module(str(path))
