"""What a stage-1 module means in exact rational arithmetic: an oracle apart from the passes.

Every float tensor is an object array of `Fraction`. Two things are taken from numerics.md: a
layer's bias is first rounded, half to even, to the unit ``s_a * s_w[o]`` of its accumulator, and
quantizers round half up. A module of dyadic ratios must then have exactly these integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tests.modules import taps, window_positions
from tvm_q4 import ops

Exact = NDArray[Any]


def exact(values: NDArray[Any]) -> Exact:
    """Floats or integers as fractions."""
    return np.array([Fraction(v) for v in np.ravel(values).tolist()], dtype=object).reshape(
        values.shape
    )


class Emulator:
    """Runs a stage-1 module; `tensors` holds the integers that each quantizer made, by name."""

    def __init__(self, mod: tvm.IRModule, x: NDArray[np.float32]) -> None:
        self.tensors: dict[str, NDArray[np.int64]] = {}
        self._env: dict[relax.Expr, Any] = {mod["main"].params[0]: exact(x)}
        self._units: dict[relax.Expr, Exact] = {}
        self._parameters: set[relax.Expr] = set()
        for block in mod["main"].body.blocks:
            for b in block.bindings:
                self._env[b.var] = self._value(b.value, b.var)
        self.result = self._env[mod["main"].body.body]

    def _value(self, expr: relax.Expr, var: relax.Var | None = None) -> Any:
        if isinstance(expr, tvm.ir.GenericConst):
            return exact(ops.const_array(expr))
        if isinstance(expr, relax.Tuple):
            return [self._value(f) for f in expr.fields]
        if isinstance(expr, relax.Call):
            return self._call(expr, var)
        if isinstance(expr, (tvm.tirx.IntImm, tvm.tirx.FloatImm)):
            return expr.value
        return self._env[expr]

    def _call(self, call: relax.Call, var: relax.Var | None) -> Any:
        data = call.args[0]
        if isinstance(data, tvm.ir.GenericConst) or data in self._parameters:
            self._parameters.add(var)
        if data in self._units and call.op.name in _KEEP_UNIT:
            self._units[var] = self._units[data]
        return _OPS[call.op.name](self, call, var)

    def dequantize(self, call: relax.Call, _var: relax.Var) -> Exact:
        q, scale, zero = (self._value(a) for a in call.args)
        shape = [1] * q.ndim
        shape[call.attrs["axis"]] = -1
        return (q - (zero.reshape(shape) if zero.size > 1 else zero)) * (
            scale.reshape(shape) if scale.size > 1 else scale
        )

    def quantize(self, call: relax.Call, _var: relax.Var) -> NDArray[Any]:
        x = self._value(call.args[0])
        scale, zero = (Fraction(ops.const_array(a).item()) for a in call.args[1:])
        a = call.attrs
        steps = [
            min(max(math.floor(v / scale + Fraction(1, 2)) + int(zero), a["qmin"]), a["qmax"])
            for v in x.flat
        ]
        out = np.array(steps, dtype=object).reshape(x.shape)
        self.tensors[str(a["name"])] = out.astype(np.int64)
        return out

    def _layer_unit(self, call: relax.Call, rank: int) -> Exact:
        """``s_a * s_w[o]``, shaped for the result."""
        data, weight = (self._units[a] for a in call.args)
        return (data * weight).reshape([1, -1] + [1] * (rank - 2))

    def conv2d(self, call: relax.Call, var: relax.Var) -> Exact:
        x, w, a = self._value(call.args[0]), self._value(call.args[1]), call.attrs
        geometry = (
            x.shape[2:], w.shape[2:], ops.ints(a.strides), ops.ints(a.padding),
            ops.ints(a.dilation),
        )  # fmt: skip
        o, ci, kh, kw = w.shape
        oh, ow = window_positions(*geometry)
        out = np.full((x.shape[0], o, oh, ow), Fraction(0), dtype=object)
        rows = w.reshape(o, ci * kh * kw)
        for n, r, c, g in product(range(len(x)), range(oh), range(ow), range(int(a.groups))):
            window = np.full((ci, kh, kw), Fraction(0), dtype=object)
            for i, j, row, column in taps(*geometry, at=(r, c)):
                if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                    window[:, i, j] = x[n, g * ci : (g + 1) * ci, row, column]
            part = slice(g * (o // int(a.groups)), (g + 1) * (o // int(a.groups)))
            out[n, part, r, c] = rows[part] @ window.ravel()
        self._units[var] = self._layer_unit(call, 4)
        return out

    def matmul(self, call: relax.Call, var: relax.Var) -> Exact:
        self._units[var] = self._layer_unit(call, 2)
        return self._value(call.args[0]) @ self._value(call.args[1])

    def add(self, call: relax.Call, _var: relax.Var) -> Exact:
        lhs, rhs = call.args
        if isinstance(rhs, tvm.ir.GenericConst) or rhs in self._parameters:
            unit = self._units[lhs]
            bias = self._value(rhs)
            return (
                self._value(lhs) + exact(np.vectorize(round, otypes=[object])(bias / unit)) * unit
            )
        return self._value(lhs) + self._value(rhs)

    def pool(self, call: relax.Call, reduce: Callable[[list[Any], int], Any]) -> Exact:
        x, a = self._value(call.args[0]), call.attrs
        geometry = (
            x.shape[2:], ops.ints(a.pool_size), ops.ints(a.strides), ops.ints(a.padding),
            ops.ints(a.dilation),
        )  # fmt: skip
        pad, size = geometry[3], x.shape[2:]
        oh, ow = window_positions(*geometry, bool(a.ceil_mode))
        out = np.empty((*x.shape[:2], oh, ow), dtype=object)
        for n, k, r, c in product(*map(range, out.shape)):
            places = [(row, column) for _, _, row, column in taps(*geometry, at=(r, c))]
            inside = [p for p in places if 0 <= p[0] < size[0] and 0 <= p[1] < size[1]]
            padded = [p for p in places if p[0] < size[0] + pad[2] and p[1] < size[1] + pad[3]]
            counted = len(padded) if a.count_include_pad else len(inside)
            out[n, k, r, c] = reduce([x[n, k, i, j] for i, j in inside], counted)
        return out


def _dequantize(e: Emulator, call: relax.Call, var: relax.Var) -> Exact:
    e._units[var] = exact(ops.const_array(call.args[1]))
    return e.dequantize(call, var)


def _reshape(e: Emulator, call: relax.Call, _var: relax.Var) -> Exact:
    return e._value(call.args[0]).reshape([int(d) for d in call.ty.shape])


def _permute(e: Emulator, call: relax.Call, _var: relax.Var) -> Exact:
    axes = call.attrs.axes
    return np.transpose(e._value(call.args[0]), None if axes is None else ops.ints(axes))


def _slice(e: Emulator, call: relax.Call, _var: relax.Var) -> Exact:
    x, axes, begin, end, steps = (e._value(a) for a in call.args)
    index = [slice(None)] * x.ndim
    for axis, b, f, s in zip(axes, begin, end, steps, strict=True):
        index[axis] = slice(b, f, s)
    return x[tuple(index)]


def _pad(e: Emulator, call: relax.Call, _var: relax.Var) -> Exact:
    width = np.reshape(ops.ints(call.attrs.pad_width), (-1, 2))
    return np.pad(
        e._value(call.args[0]), width, constant_values=Fraction(float(call.attrs.pad_value))
    )


def _clip(e: Emulator, call: relax.Call, _var: relax.Var) -> Exact:
    x, *bounds = (e._value(a) for a in call.args)
    low, high = (Fraction(b) for b in bounds)
    return np.minimum(np.maximum(x, low), high)


_KEEP_UNIT = (
    "relax.nn.relu", "relax.nn.max_pool2d", "relax.reshape", "relax.permute_dims",
    "relax.strided_slice", "relax.nn.pad", "relax.concat",
)  # fmt: skip
_OPS: dict[str, Callable[[Emulator, relax.Call, Any], Any]] = {
    "q4.quantize": Emulator.quantize,
    "q4.dequantize": _dequantize,
    "relax.nn.conv2d": Emulator.conv2d,
    "relax.matmul": Emulator.matmul,
    "relax.add": Emulator.add,
    "relax.nn.relu": lambda e, call, _: np.maximum(e._value(call.args[0]), Fraction(0)),
    "relax.clip": _clip,
    "relax.nn.max_pool2d": lambda e, call, _: e.pool(call, lambda values, _n: max(values)),
    "relax.nn.avg_pool2d": lambda e, call, _: e.pool(call, lambda values, n: sum(values) / n),
    "relax.mean": lambda e, call, _: e._value(call.args[0]).mean(
        axis=(2, 3), keepdims=bool(call.attrs.keepdims)
    ),
    "relax.concat": lambda e, call, _: np.concatenate(e._value(call.args[0]), int(call.attrs.axis)),
    "relax.reshape": _reshape,
    "relax.permute_dims": _permute,
    "relax.strided_slice": _slice,
    "relax.nn.pad": _pad,
}
