"""The example layer of the QdqToInteger tests, before and after."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tests.relay_passes.builders import Graph, weights
from tvm_q4 import ops
from tvm_q4.quant import dyadic_array
from tvm_q4.relay_passes.qdq_to_integer import QdqToInteger

RNG = np.random.default_rng(0)
W = weights(RNG, (4, 3, 3, 3))
S_W = np.array([0.011, 0.02, 0.0071, 0.03])
BIAS = np.array([0.5, -1.25, 0.0, 3.0], np.float32)
S_IN, Z_IN, S_OUT = 0.043, -5, 0.0875


def check(before: tvm.IRModule, expected: tvm.IRModule) -> None:
    """The pass makes `expected`, and of that itself."""
    tvm.ir.assert_structural_equal(QdqToInteger(before), expected)
    tvm.ir.assert_structural_equal(QdqToInteger(expected), expected)


def folded_bias(zero: int) -> np.ndarray:
    """numerics.md's bias, channel by channel in Python."""
    steps = [round(float(b) / (S_IN * float(s))) for b, s in zip(BIAS, S_W, strict=True)]
    sums = W.reshape(4, -1).astype(int).sum(axis=1)
    return np.array([q - zero * int(k) for q, k in zip(steps, sums, strict=True)], np.int32)


def int_conv(g: Graph, q: relax.Var, zero: int = Z_IN, bias: np.ndarray | None = None) -> relax.Var:
    return g(
        ops.conv2d(
            q, W, folded_bias(zero) if bias is None else bias, name="conv1", strides=[1, 1],
            padding=[1, 1, 1, 1], zero_point=zero, weight_bits=8,
        )
    )  # fmt: skip


def requantized(
    g: Graph, acc: relax.Var, name: str, scale: float, lo: int, hi: int, **kw
) -> relax.Var:
    m, e = dyadic_array(S_IN * S_W / scale)
    return g(ops.requantize(acc, m, e, name=name, lo=lo, hi=hi, **kw))
