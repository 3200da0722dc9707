"""Lowering of CUDA modules: our functions by passes of our own, TVM's float operators by TVM's.

TVM's pipeline for scheduled functions breaks hand-written shared memory: StorageRewrite gives a
shared array another element type while ``ldmatrix`` still counts in words, and
CompactBufferAllocation shrinks arrays that are reached only through pointers. Ours leaves both out,
and leaves common subexpressions to nvcc: variables that TVM puts in their place hide alignment.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm

from tvm_q4._compat import (
    default_tir_pipeline,
    finalize_device_passes,
    finalize_host_passes,
    register_tir_pipeline,
    s_tir,
    tirx,
)
from tvm_q4.schedules.cuda.kernel import CUDA_ATTR

PIPELINE = "tvm_q4_cuda"


def _own_passes() -> tvm.transform.Pass:
    return tvm.transform.Sequential(
        [
            s_tir.transform.UnifyThreadBinding(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            s_tir.transform.MergeSharedMemoryAllocations(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
            _forget_noalias,
        ]
    )


@tvm.transform.module_pass(opt_level=0, name="ForgetNoalias")
def _forget_noalias(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Leave out ``__restrict__``, which SplitHostDevice promises for every kernel.

    With it nvcc loads what is never written as early as it can, before the barriers of the main
    loop too: 48 registers of the epilogue's constants would be held all through the loop.
    """
    functions = {gv: func.with_attr("tirx.noalias", False) for gv, func in mod.functions.items()}
    return tvm.IRModule(functions, attrs=mod.attrs)


def _is_own(func: Any) -> bool:
    return bool(func.attrs) and CUDA_ATTR in func.attrs


@tvm.transform.module_pass(opt_level=0, name="LowerCuda")
def lower_cuda(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Lower every function to host and device functions."""
    functions = dict(mod.functions)
    own = {gv: f for gv, f in functions.items() if _is_own(f)}
    other = {gv: f for gv, f in functions.items() if gv not in own}
    lowered = _own_passes()(tvm.IRModule(own, attrs=mod.attrs))
    if other:
        passes = default_tir_pipeline()[0]
        lowered.update(passes(tvm.IRModule(other, attrs=mod.attrs)))
    return lowered


@cache
def tir_pipeline() -> str:
    """Name of the registered TIR pipeline, for ``relax.build`` and ``tirx.build``."""
    register_tir_pipeline(
        PIPELINE, lambda: (lower_cuda, finalize_host_passes, finalize_device_passes)
    )
    return PIPELINE
