"""The network of `tiny` as CUDA code for two families, and what stands for it where no GPU is.

`write` makes a library whose kernels are real CUDA code: it can be inspected, not run here.
`write_emulated` makes one with the same metadata and function names whose kernels run on the CPU,
for tests that put this machine's CPU in place of the GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir

from tests.library import tiny
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.library import export_library

TARGET = CudaTarget((75, 80, 89))
FAMILIES = tuple(TARGET.families())


def _on_gpu(func: Any, target: Any) -> Any:
    """The kernel with one thread for each element of what its last block writes."""
    schedule = s_tir.Schedule(func)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    for block in blocks:
        loops = schedule.get_loops(block)
        reduced = sum(it.iter_type == 2 for it in schedule.get(block).iter_vars)
        fused = schedule.fuse(*loops[: len(loops) - reduced])
        outer, inner = schedule.split(fused, [None, 32])
        schedule.bind(outer, "blockIdx.x")
        schedule.bind(inner, "threadIdx.x")
    return schedule.mod["main"].with_attr({"target": target, "tirx.is_scheduled": True})


def module() -> tvm.IRModule:
    """Functions of all families, each PrimFunc with its family's target."""
    functions = {}
    for family in FAMILIES:
        suffix, target = f"_sm{family}", TARGET.family_target(family)
        for var, func in tiny.module(suffix).functions.items():
            kernel = isinstance(func, tvm.tirx.PrimFunc)
            functions[var] = (
                _on_gpu(func, target).with_attr("global_symbol", var.name_hint) if kernel else func
            )
    return tvm.IRModule(functions)


def emulated_module() -> tvm.IRModule:
    """The same functions for this CPU, and those that stand for CUDA graphs."""
    suffixes = [f"{graph}_sm{family}" for family in FAMILIES for graph in ("", "_graph")]
    functions = [tiny.module(suffix).functions for suffix in suffixes]
    return tvm.IRModule({var: f for part in functions for var, f in part.items()})


def metadata() -> dict[str, Any]:
    """Metadata in the form that the compiler writes for CUDA."""
    common = tiny.metadata()
    families = []
    for family, archs in TARGET.families().items():
        calls = [{**c, "kernel": f"{c['kernel']}_sm{family}"} for c in common["calls"]]
        layers = [{**c, "kernel": f"{c['kernel']}_sm{family}"} for c in common["layers"]]
        entry = {"family": family, "archs": list(archs), "layers": layers, "calls": calls}
        families.append(entry | {"memory": {"arena_bytes": family, "weight_bytes": 0}})
    newest = {key: families[-1][key] for key in ("layers", "calls", "memory")}
    return common | newest | {"target": TARGET.to_json(), "families": families}


def write(path: Path) -> Path:
    """Write the library with CUDA code."""
    executable = tiny.build(module(), TARGET.family_target(FAMILIES[0]))
    return export_library(executable, metadata(), path)


def write_emulated(path: Path, **changes: Any) -> Path:
    """Write the library that runs on the CPU under the names of CUDA's functions."""
    return export_library(tiny.build(emulated_module()), metadata() | changes, path)
