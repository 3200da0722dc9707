"""Modules of one convolution or linear layer for the tests of tensor-core kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.target import Target

from tests.schedules.builders import U8, full_range, module, ratios, weights
from tvm_q4 import ops
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange
from tvm_q4.schedules.cuda.conv2d import TensorCoreConv2d
from tvm_q4.schedules.cuda.rules import RULES
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.rule import Params, ScheduleRule


class Forced(TensorCoreConv2d):
    """The rule with one parameter setting."""

    def __init__(self, **params: int) -> None:
        self._params = params

    def space(self, layer: Layer, target: Target) -> list[Params]:
        return [dict(self._params)]


def forced(
    bm: int,
    bn: int,
    bk: int,
    wm: int,
    wn: int,
    stages: int = 2,
    split_k: int = 1,
) -> list[ScheduleRule]:
    """All rules, convolutions with these parameters."""
    rule = Forced(bm=bm, bn=bn, bk=bk, wm=wm, wn=wn, stages=stages, split_k=split_k)
    return [rule, *RULES]


@dataclass(frozen=True)
class Conv:
    """A convolution of data that uses its whole range, and what follows it.

    `residual` is a form of q4.add, or None for a requantize; `result` None leaves the accumulator.
    What is added is the data, or a convolution of it (``s``) where the shape is another.
    """

    shape: tuple[int, int, int, int]
    out: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bits: int = 8
    data: IntRange = U8
    zero: int = 0
    result: IntRange | None = U8
    residual: str | None = None

    def module(self, seed: int = 0) -> tvm.IRModule:
        """The integer-stage module."""
        rng = np.random.default_rng(seed)
        return module(self.shape, self.data, lambda b, x: self._emit(b, x, rng))

    def input(self, seed: int = 1) -> NDArray[Any]:
        """Integers over the whole range of the data."""
        return full_range(np.random.default_rng(seed), self.data, self.shape)

    def _emit(self, b: relax.BlockBuilder, x: relax.Expr, rng: np.random.Generator) -> relax.Expr:
        skip = None
        if self.residual and self.shape[1] == self.out:
            skip = b.emit(ops.requantize(x, *ratios(rng, 1, 31, 32), name="skip", **_type(U8)))
        elif self.residual:
            apart = self._accumulator(b, x, rng, "s")
            skip = b.emit(ops.requantize(apart, *ratios(rng, self.out), name="skip", **_type(U8)))
        acc = self._accumulator(b, x, rng)
        if self.result is None:
            return acc
        m, e = ratios(rng, self.out)
        if skip is None:
            return b.emit(ops.requantize(acc, m, e, name="y", **_type(self.result)))
        m2, e2 = ratios(rng, self.out, 31, 34)
        how = _type(self.result) | {"form": self.residual}
        if self.residual == "fused":
            e2 = e
        if self.residual == "accumulator":
            how |= _type(IntRange(INT32_MIN, INT32_MAX))
            total = b.emit(ops.add(acc, skip, [1], [0], m2, e2, name="sum", **how))
            return b.emit(ops.requantize(total, m, e, name="y", **_type(self.result)))
        return b.emit(ops.add(acc, skip, m, e, m2, e2, name="y", **how))

    def _accumulator(
        self, b: relax.BlockBuilder, x: relax.Expr, rng: np.random.Generator, name: str = "c"
    ) -> relax.Var:
        w = weights(rng, self.bits, (self.out, self.shape[1] // self.groups, *self.kernel))
        w[0], w[-1] = -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        bias = rng.integers(-30000, 30000, self.out).astype(np.int32)
        geometry = {"strides": list(self.strides), "padding": list(self.padding)}
        geometry |= {"dilation": list(self.dilation), "groups": self.groups}
        return b.emit(
            ops.conv2d(
                x, w, bias, name=name, zero_point=self.zero, weight_bits=self.bits, **geometry
            )
        )


def _type(values: IntRange) -> dict[str, Any]:
    return {"lo": values.lo, "hi": values.hi, "dtype": values.dtype}
