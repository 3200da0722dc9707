"""Building one candidate, in a worker process."""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import tvm
from tvm.target import Target

from tvm_q4.cuda_target import from_tvm
from tvm_q4.library.export import packer
from tvm_q4.library.linker import find_compiler
from tvm_q4.library.packing import source_only
from tvm_q4.schedules.rule import Params
from tvm_q4.tune.kernel_file import Kernel


def build(task_file: str, params: Params, folder: str) -> str:
    """Build a candidate into `folder`, which does not exist yet.

    Parameters
    ----------
    task_file : str
        Pickle of layer, rule, target and the function's name.
    params : dict
    folder : str

    Returns
    -------
    str
        `folder`.
    """
    layer, rule, target, symbol = _task(task_file)
    kernel = Kernel(Path(folder))
    kernel.folder.mkdir(parents=True)
    mod = tvm.IRModule({symbol: rule.schedule(layer, target, params, symbol)})
    _export(mod, target, kernel.library)
    kernel.write(
        symbol, rule.constants(layer, target, params), rule.workspace(layer, target, params)
    )
    return folder


@lru_cache(maxsize=2)
def _task(task_file: str) -> Any:
    return pickle.loads(Path(task_file).read_bytes())


def _export(mod: tvm.IRModule, target: Target, path: Path) -> None:
    """Compile and link; CUDA modules hold machine code of the target's arch only."""
    if target.kind.name != "cuda":
        tvm.compile(mod, target=target).export_library(str(path), cc=find_compiler())
        return
    from tvm_q4.schedules.cuda.pipeline import tir_pipeline

    arch = from_tvm(target, str(target)).archs
    with source_only():
        executable = tvm.compile(mod, target=target, tir_pipeline=tir_pipeline())
    pack = packer({"kind": "cuda", "archs": list(arch), "ptx": None})
    executable.export_library(str(path), cc=find_compiler(), fpack_imports=pack)
