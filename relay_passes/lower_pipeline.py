"""From the fused module's kernels calls to a module that TVM's VM code generation takes.

Replaces TVM's default Relax pipeline: its memory planning would give every tensor a storage of its
own where we want one arena, and its fusion expects functions that are not scheduled yet.
"""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax
from tvm.target import Target

from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.relay_passes.pipeline import dump_phase
from tvm_q4.relay_passes.plan_memory import ARENA_ATTR, PlanMemory

_T = relax.transform
TO_CALLS = (_T.LegalizeOps, _T.ToNonDataflow, _T.RemovePurityChecking, _T.CallTIRRewrite)
TO_VM = (
    _T.LowerAllocTensor,
    _T.KillAfterLastUse,
    _T.LowerRuntimeBuiltin,
    _T.ComputePrimValue,
    _T.VMShapeLower,
    _T.AttachGlobalSymbol,
)


def dump_module(mod: tvm.IRModule, directory: str | Path | None, number: int, name: str) -> None:
    """Write a module as one more phase of ``--dump-ir``; nothing where `directory` is None."""
    if directory is not None:
        dump_phase(Path(directory), number, name)(mod)


def to_fused(mod: tvm.IRModule, *, dump_dir: str | Path | None = None) -> tvm.IRModule:
    """Group epilogues with their anchors."""
    fused = FuseEpilogue(mod)
    dump_module(fused, dump_dir, 10, "fuse-epilogue")
    return fused


def lower_relax(
    mod: tvm.IRModule, target: Target, *, dump_dir: str | Path | None = None
) -> tuple[tvm.IRModule, int]:
    """Lower what `lower_to_tir` made to VM instructions.

    Returns
    -------
    tuple of IRModule and int
        The module, and the arena's size in bytes.
    """
    dump_module(mod, dump_dir, 11, "lower-to-tir")
    with target:
        mod = tvm.transform.Sequential([make() for make in TO_CALLS])(mod)
        mod = PlanMemory(mod)
        dump_module(mod, dump_dir, 12, "plan-memory")
        arena = int(mod.attrs[ARENA_ATTR])
        return tvm.transform.Sequential([make() for make in TO_VM])(mod), arena
