"""CheckOverflow: prove that no accumulator, sum or product leaves its type (numerics.md).

Bounds are per channel: ``sum_k |w[o, k]| * max|x| + |bias[o]|`` for convolutions and linear layers,
with ``max|x| = 255`` for signed 8-bit containers, which CPU kernels shift by 128.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4.errors import NumericsError
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange
from tvm_q4.ranges import value_ranges
from tvm_q4.relay_passes._rewrite import dataflow_bindings, dtype_of, op_name
from tvm_q4.relay_passes.qdq_rules.movement import MOVEMENTS

Bound = NDArray[np.int64]
_INT64_MAX = 2**63 - 1
_SHIFTED = 255


class _Checker:
    """Walks ``main`` with a bound on the absolute value of every integer tensor, [1] or [C]."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.ranges = value_ranges(mod)
        self.bounds: dict[relax.Expr, Bound] = {}

    def visit(self, binding: relax.VarBinding) -> None:
        value = binding.value
        if op_name(value) in _RULES:
            self.bounds[binding.var] = _RULES[op_name(value)](self, value)
        elif op_name(value) in MOVEMENTS and binding.var in self.ranges:
            self.bounds[binding.var] = self.moved(value)

    def bound(self, expr: relax.Expr, zero_point: int = 0) -> Bound:
        """Bound of ``|expr - zero_point|``."""
        known = self.bounds.get(expr)
        if known is not None:
            return known + abs(zero_point)
        r = self.ranges[expr]
        return np.array([max(abs(r.lo - zero_point), abs(r.hi - zero_point))], np.int64)

    def layer(self, call: relax.Call) -> Bound:
        """Accumulators of a convolution or linear layer."""
        r = self.ranges[call.args[0]]
        remedy = "use smaller weights, fewer bits or a smaller bias"
        _fits(layer_bound(call, r), INT32_MAX, call, "the accumulator", "int32", remedy)
        return _accumulated(call, max(r.max_abs, abs(int(call.attrs["zero_point"]))))

    def moved(self, call: relax.Call) -> Bound:
        """Data movement: one bound for all channels, with the padded value."""
        fill = abs(int(call.attrs.pad_value)) if op_name(call) == "relax.nn.pad" else 0
        return np.atleast_1d(np.maximum(self.bound(call.args[0]).max(), fill))

    def average(self, call: relax.Call) -> Bound:
        """Sums of an average pool."""
        pool = ops.ints(call.attrs["pool_size"])
        total = self.bound(call.args[0], int(call.attrs["zero_point"])).max() * np.prod(pool)
        total = np.atleast_1d(total)
        _fits(total, INT32_MAX, call, "the sum of a window", "int32", "use a smaller window")
        return total if str(call.attrs["rounding"]) == "sum" else self.bound(call.args[0])

    def requantize(self, call: relax.Call) -> Bound:
        """Requantized values; without a clamp they must fit int32 by themselves."""
        a = call.attrs
        m, e = _flat(call.args[1]), _flat(call.args[2])
        scaled = _rounded(self.bound(call.args[0], int(a["in_zero_point"])), m, e) + abs(
            int(a["zero_point"])
        )
        if len(call.args) > 3:
            scaled = scaled + np.abs(_flat(call.args[3]))
        return self._clamped(call, scaled)

    def add(self, call: relax.Call) -> Bound:
        """Residual adds: int64 products in the fused form, int32 sums in the others."""
        a = call.attrs
        m1, e1, m2, e2 = (_flat(arg) for arg in call.args[2:6])
        lhs = self.bound(call.args[0], int(a["lhs_zero_point"]))
        rhs = self.bound(call.args[1], int(a["rhs_zero_point"]))
        if str(a["form"]) == "fused":
            half = np.array([(1 << int(s)) >> 1 for s in e1], dtype=object)
            products = lhs.astype(object) * np.abs(m1) + rhs.astype(object) * np.abs(m2) + half
            _fits(
                products,
                _INT64_MAX,
                call,
                "the sum of both products",
                "int64",
                "use form two_sided",
            )
            total = np.array(
                [int(p) >> int(s) for p, s in np.broadcast(products, e1)], dtype=object
            )
            return self._clamped(call, total + abs(int(a["zero_point"])))
        total = _rounded(lhs, m1, e1) + _rounded(rhs, m2, e2) + abs(int(a["zero_point"]))
        _fits(total, INT32_MAX, call, "the sum of both sides", "int32", "use larger scales")
        return self._clamped(call, total)

    def _clamped(self, call: relax.Call, total: NDArray) -> Bound:
        lo, hi = int(call.attrs["lo"]), int(call.attrs["hi"])
        if (lo, hi) == (INT32_MIN, INT32_MAX):
            _fits(
                total, INT32_MAX, call, "the result without a clamp", "int32", "use larger scales"
            )
        return np.minimum(total, max(abs(lo), abs(hi))).astype(np.int64)


_RULES: dict[str, Callable[[_Checker, relax.Call], Bound]] = {
    "q4.conv2d": _Checker.layer,
    "q4.dense": _Checker.layer,
    "q4.avg_pool2d": _Checker.average,
    "q4.requantize": _Checker.requantize,
    "q4.add": _Checker.add,
    "q4.max_pool2d": lambda self, call: self.bound(call.args[0]),
}


def _accumulated(call: relax.Call, largest: int) -> Bound:
    """``sum_k |w[o, k]| * largest + |bias[o]|`` of a layer."""
    weight, bias = (ops.const_array(a) for a in call.args[1:3])
    rows = np.abs(weight.reshape(len(weight), -1).astype(np.int64)).sum(axis=1)
    return rows * largest + np.abs(bias.astype(np.int64))


def layer_bound(call: relax.Call, values: IntRange) -> Bound:
    """Largest value [O] that a kernel of a layer may reach on data in the range `values`."""
    largest = max(values.max_abs, abs(int(call.attrs["zero_point"])))
    shifted = values.signed and dtype_of(call.args[0]) == "int8"
    return _accumulated(call, _SHIFTED if shifted else largest)


def _flat(const: relax.Expr) -> NDArray[np.int64]:
    """Multipliers or shifts as [1] or [C]; those that differ by position as their largest, [1]."""
    values = ops.const_array(const).astype(np.int64)
    return values if values.ndim == 1 else np.atleast_1d(values.max())


def _rounded(bound: Bound, m: NDArray[np.int64], e: NDArray[np.int64]) -> Bound:
    """Bound of ``round(x * m / 2**e)`` whatever the rounding: the quotient plus one."""
    exact = [
        (int(b) * abs(int(k)) >> int(s)) + 1 if k or s == 0 else 0
        for b, k, s in np.broadcast(bound.astype(object), m, e)
    ]
    return np.array(exact, dtype=object)


def _fits(total: NDArray, limit: int, call: relax.Call, what: str, dtype: str, remedy: str) -> None:
    if (total > limit).any():
        o = int(np.argmax(total))
        msg = (
            f"{call.op.name} {call.attrs['name']!s} channel {o}: {what} may reach {int(total[o])}, "
            f"beyond {dtype} ({limit}); {remedy}"
        )
        raise NumericsError(msg)


@tvm.transform.module_pass(opt_level=0, name="CheckOverflow")
def CheckOverflow(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Return the module as it is, having proved that its integer arithmetic cannot overflow.

    Raises
    ------
    NumericsError
        If an accumulator, a sum or a product may; the message names layer, channel and value.
    """
    checker = _Checker(mod)
    for binding in dataflow_bindings(mod["main"]):
        checker.visit(binding)
    return mod
