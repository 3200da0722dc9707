"""BindFloatKernels: TVM's float kernels get a GPU schedule, a target and a family's name."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tests.schedules.builders import U8, module, requantized
from tests.schedules.cuda.builders import cuda, lower
from tvm_q4 import ops
from tvm_q4.relay_passes.bind_float_kernels import bind_float_kernels


def _softmax(builder: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    logits = builder.emit(ops.dequantize(x, [0.5], [0], name="l", qmin=0, qmax=255))
    return builder.emit(relax.op.nn.softmax(logits, axis=1))


def _legalized(build: object, arch: int) -> tvm.IRModule:
    lowered = lower(module((1, 16, 2, 2), U8, build), arch)
    return relax.transform.LegalizeOps()(lowered.mod)


def test_float_kernels_are_bound() -> None:
    mod = _legalized(_softmax, 80)
    bound = bind_float_kernels(mod, cuda(80), "_sm80")
    assert "softmax_sm80" in [gv.name_hint for gv in bound.functions]
    func = bound["softmax_sm80"]
    assert str(func.attrs["target"].attrs["arch"]) == "sm_80"
    assert "blockIdx.x" in func.script()
    assert "softmax_sm80" in bound["main"].script()


def test_unchanged_without_float_kernels() -> None:
    def plain(builder: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
        return requantized(builder, x, np.random.default_rng(0))

    mod = _legalized(plain, 80)
    assert bind_float_kernels(mod, cuda(80), "_sm80").same_as(mod)
