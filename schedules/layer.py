"""A fused layer as schedule rules see it: an anchor, an epilogue program, tensors with layouts.

`Layer` is read from a fused Relax function. It holds the constants (weights, biases, multipliers)
and bounds on every intermediate value; `Layer.signature` holds everything else that decides a
kernel, so two layers of one signature share one kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange
from tvm_q4.schedules.high_word import prepare
from tvm_q4.schedules.layout import Layout, shape4

ANCHORS = ("conv2d", "dense", "max_pool2d", "avg_pool2d", "quantize", "concat", "gather")
Ref = tuple[str, int]
_PARAMS: dict[str, tuple[str, ...]] = {
    "requantize": ("multiplier", "shift", "offset"),
    "add": ("lhs_multiplier", "lhs_shift", "rhs_multiplier", "rhs_shift"),
    "dequantize": ("scale", "zero_point"),
    "quantize": ("scale", "zero_point"),
    "conv2d": ("weight", "bias"),
    "dense": ("weight", "bias"),
}


@dataclass
class Tensor:
    """One tensor at a layer's edge.

    `shape` is logical [N, C, H, W], `range` is None for float32, `fill` is the value of the halo,
    `rank` the number of axes that a plain tensor really has.
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: str
    range: IntRange | None
    layout: Layout
    fill: int = 0
    rank: int = 4

    @property
    def physical_shape(self) -> tuple[int, ...]:
        """Shape in memory."""
        return self.layout.physical_shape(self.shape[: self.rank])

    @property
    def physical_dtype(self) -> str:
        """Element type in memory: int32 words where elements are packed."""
        return self.layout.physical_dtype(self.dtype)

    @property
    def tag(self) -> str:
        """Value type as printed in signatures: ``u4``, or ``u4/int8`` in an unusual container."""
        if self.range is None:
            return "f32"
        usual = self.dtype == self.range.dtype
        return self.range.tag if usual else f"{self.range.tag}/{self.dtype}"

    @property
    def layout_tag(self) -> str:
        """Layout as printed in signatures, with the rank of a plain tensor that is not rank 4."""
        plain = self.layout.kind == "NCHW" and self.rank != 4
        return f"{self.layout.tag()}[:{self.rank}]" if plain else self.layout.tag()


@dataclass
class Op:
    """One q4 operator: what it reads, its attributes and constants, its value's bounds.

    `narrow` tells that 32-bit products are exact; `high` that only the high words of 64-bit ones
    are kept (`high_word`), and by how many bits each operand is shifted left before.
    """

    kind: str
    name: str
    attrs: dict[str, Any]
    refs: list[Ref]
    params: dict[str, np.ndarray]
    dtype: str
    bounds: tuple[int, int]
    narrow: bool = False
    high: list[int] | None = None

    def unit(self, side: str) -> bool:
        """Whether an add takes that side (``lhs`` or ``rhs``) as it is: multiplier 1, shift 0."""
        one = (self.params[f"{side}_multiplier"] == 1).all()
        return bool(one and not self.params[f"{side}_shift"].any())


@dataclass
class Layer:
    """A fused layer; ``ops[0]`` is the anchor if there is one, `outputs` are results of ops."""

    name: str
    ops: list[Op]
    inputs: list[Tensor]
    outputs: list[tuple[int, Tensor]]
    shape: tuple[int, int, int, int] = field(default=(1, 1, 1, 1))

    @property
    def anchor(self) -> Op | None:
        """The operator that decides the loops; None for a purely element-wise layer."""
        return self.ops[0] if self.ops[0].kind in ANCHORS else None

    @property
    def kind(self) -> str:
        """Anchor's operator name, or ``elementwise``."""
        return self.anchor.kind if self.anchor else "elementwise"

    @property
    def data(self) -> Tensor:
        """The anchor's data operand (the first input of an element-wise layer)."""
        return self.inputs[self.ops[0].refs[0][1]]

    @property
    def epilogue(self) -> list[tuple[int, Op]]:
        """Operators after the anchor with their index."""
        return [(i, op) for i, op in enumerate(self.ops) if not (i == 0 and self.anchor)]


def _bounds_of_weights(op: Op, lo: int, hi: int) -> tuple[int, int]:
    w = op.params["weight"].astype(np.int64)
    w = w.reshape(w.shape[0], -1)
    bias = op.params["bias"].astype(np.int64)
    up, down = np.where(w > 0, w, 0).sum(1), np.where(w < 0, w, 0).sum(1)
    return int((up * lo + down * hi + bias).min()), int((up * hi + down * lo + bias).max())


def _scaled(
    bounds: tuple[int, int], zero: int, m: np.ndarray, e: np.ndarray
) -> tuple[int, int, int]:
    """Bounds of ``round((v - zero) * m / 2**e)`` and the largest absolute value on the way.

    That is the product plus rounding, or ``2**e`` itself, which rounding computes in the same type.
    """
    lo, hi = bounds[0] - zero, bounds[1] - zero
    pairs = np.broadcast_arrays(*(a if a.ndim == 4 else a.reshape(1, -1, 1, 1) for a in (m, e)))
    m64, e64 = (a.astype(object).ravel() for a in pairs)
    products = [
        (min(lo * a, hi * a), max(lo * a, hi * a), s) for a, s in zip(m64, e64, strict=True)
    ]
    peak = max(max(max(abs(p), abs(q)) + ((1 << s) >> 1), 1 << s) for p, q, s in products)
    return min((p >> s) for p, _, s in products), max((q >> s) + 1 for _, q, s in products), peak


def _value_bounds(op: Op, args: list[tuple[int, int]]) -> tuple[tuple[int, int], bool]:
    """Bounds of an operator's result, and whether 32-bit products are exact for it."""
    a = op.attrs
    if op.kind in ("conv2d", "dense"):
        zero = int(a["zero_point"])
        return _bounds_of_weights(op, min(args[0][0], zero), max(args[0][1], zero)), False
    if op.kind == "requantize":
        lo, hi, peak = _scaled(
            args[0], a["in_zero_point"], op.params["multiplier"], op.params["shift"]
        )
        off = op.params.get("offset", np.zeros(1, np.int32)).astype(np.int64)
        z = a["zero_point"]
        lo, hi = lo + z + min(0, int(off.min())), hi + z + max(0, int(off.max()))
        fits = peak <= INT32_MAX and lo >= INT32_MIN and hi <= INT32_MAX
        return (max(lo, a["lo"]), min(hi, a["hi"])), fits
    if op.kind == "add":
        p = op.params
        l_lo, l_hi, l_peak = _scaled(
            args[0], a["lhs_zero_point"], p["lhs_multiplier"], p["lhs_shift"]
        )
        r_lo, r_hi, r_peak = _scaled(
            args[1], a["rhs_zero_point"], p["rhs_multiplier"], p["rhs_shift"]
        )
        lo, hi = l_lo + r_lo + a["zero_point"] - 1, l_hi + r_hi + a["zero_point"] + 1
        fits = l_peak + r_peak <= INT32_MAX and lo >= INT32_MIN and hi <= INT32_MAX
        return (max(lo, a["lo"]), min(hi, a["hi"])), fits
    if op.kind == "avg_pool2d" and a["rounding"] == "sum":
        n = a["pool_size"][0] * a["pool_size"][1]
        z = a["zero_point"]
        return (min(0, (args[0][0] - z) * n), max(0, (args[0][1] - z) * n)), False
    if op.kind == "quantize":
        return (a["qmin"], a["qmax"]), False
    if op.kind == "concat":
        return (min(lo for lo, _ in args), max(hi for _, hi in args)), False
    return args[0], False


def _use_high_words(op: Op, args: list[tuple[int, int]]) -> None:
    """Set `Op.high`, and the constants that go with it, where `high_word` is exact."""
    a, p = op.attrs, op.params
    fits = op.kind == "requantize" or (op.kind == "add" and a["form"] == "fused")
    if op.narrow or not fits or a["rounding"] != "half_up":
        return
    if "offset" in p or any(array.ndim == 4 for array in p.values()):
        return
    names = ("lhs_", "rhs_") if op.kind == "add" else ("",)
    zeros = [a[f"{n or 'in_'}zero_point"] for n in names]
    peaks = [max(abs(lo - z), abs(hi - z)) for (lo, hi), z in zip(args, zeros, strict=True)]
    if max(peaks) > INT32_MAX:
        return
    sides = [(p[f"{n}multiplier"], peak) for n, peak in zip(names, peaks, strict=True)]
    ready = prepare(sides, p[f"{names[0]}shift"])
    if ready is None:
        return
    multipliers, op.high, shift = ready
    for n, multiplier in zip(names, multipliers, strict=True):
        p[f"{n}multiplier"], p[f"{n}shift"] = multiplier, shift


def _params(call: relax.Call, kind: str) -> dict[str, np.ndarray]:
    names = _PARAMS.get(kind, ())
    start = len(call.args) - sum(isinstance(a, GenericConst) for a in call.args)
    params = {n: ops.const_array(c) for n, c in zip(names, call.args[start:], strict=False)}
    if kind in ("requantize", "add"):
        return {n: _normal(call, n, array) for n, array in params.items()}
    if kind in ("quantize", "dequantize"):
        _check_scale(call, params)
    return params


def _check_scale(call: relax.Call, params: dict[str, np.ndarray]) -> None:
    """One zero point, and scales along the channels at most: what kernels can do."""
    zero, scale, rank = params["zero_point"], params["scale"], len(call.ty.shape)
    along = scale.size == 1 or int(call.attrs["axis"]) % rank == 1
    if zero.size > 1 or not along:
        msg = (
            f"{call.op.name} {call.attrs['name']!s} has {zero.size} zero point(s) and "
            f"{scale.size} scale(s) on axis {int(call.attrs['axis'])}; "
            "give it one zero point and scales on axis 1"
        )
        raise UnsupportedError(msg)


def _normal(call: relax.Call, name: str, array: np.ndarray) -> np.ndarray:
    """A parameter of [1] or [C], or of [1, 1 or C, H, W] where it differs by position."""
    if array.ndim < 4:
        return array.ravel()
    if array.shape[0] != 1:
        shape = list(array.shape)
        msg = f"the {name} of {call.attrs['name']!s} has shape {shape}: it differs by image"
        raise UnsupportedError(msg)
    if array.shape[2:] == (1, 1):
        return array.ravel()
    return np.broadcast_to(array, (1, array.shape[1], *(int(d) for d in list(call.ty.shape)[2:])))


def declared_range(
    kind: str, attrs: dict[str, Any], dtype: str, operand: IntRange | None
) -> IntRange | None:
    """Value range that an operator declares for its result; None for float32."""
    if dtype == "float32":
        return None
    if "lo" in attrs:
        return IntRange(attrs["lo"], attrs["hi"])
    if kind == "quantize":
        return IntRange(attrs["qmin"], attrs["qmax"])
    if dtype == "int32" or operand is None:
        return IntRange(INT32_MIN, INT32_MAX)
    return operand


def layer_from_function(
    func: relax.Function, inputs: list[Tensor], layouts: list[Layout], fills: list[int]
) -> Layer:
    """Read a fused Relax function.

    Parameters
    ----------
    func : relax.Function
        A private function made by ``FuseEpilogue``.
    inputs : list of Tensor
        What its parameters are.
    layouts, fills : list of Layout, list of int
        Layouts of its results and the values of their halos, in order.
    """
    refs: dict[relax.Var, Ref] = {p: ("in", i) for i, p in enumerate(func.params)}
    layer_ops: list[Op] = []
    ranges: dict[Ref, IntRange | None] = {("in", i): t.range for i, t in enumerate(inputs)}
    shapes: list[tuple[int, ...]] = []
    for block in func.body.blocks:
        for b in block.bindings:
            if isinstance(b.value, relax.Var):
                refs[b.var] = refs[b.value]
                continue
            kind, attrs = b.value.op.name.removeprefix("q4."), ops.attrs_of(b.value)
            op_refs = [refs[a] for a in b.value.args if isinstance(a, relax.Var)]
            dtype = str(b.value.ty.dtype)
            op = Op(kind, attrs["name"], attrs, op_refs, _params(b.value, kind), dtype, (0, 0))
            args = [_ref_bounds(r, layer_ops, inputs) for r in op_refs]
            if dtype != "float32":
                op.bounds, op.narrow = _value_bounds(op, args)
                _use_high_words(op, args)
            ref: Ref = ("op", len(layer_ops))
            operand = IntRange(*op.bounds) if kind == "concat" else ranges[op_refs[0]]
            ranges[ref] = declared_range(kind, attrs, dtype, operand)
            layer_ops.append(op)
            shapes.append(tuple(int(d) for d in b.value.ty.shape))
            refs[b.var] = ref
    body = func.body.body
    results = list(body.fields) if isinstance(body, relax.Tuple) else [body]
    outputs = []
    for var, layout, fill in zip(results, layouts, fills, strict=True):
        i = refs[var][1]
        op = layer_ops[i]
        shape, rank = shape4(shapes[i]), len(shapes[i])
        outputs.append((i, Tensor(op.name, shape, op.dtype, ranges["op", i], layout, fill, rank)))
    return Layer(layer_ops[0].name, layer_ops, inputs, outputs, shape4(shapes[0]))


def _ref_bounds(ref: Ref, layer_ops: list[Op], inputs: list[Tensor]) -> tuple[int, int]:
    if ref[0] == "op":
        return layer_ops[ref[1]].bounds
    r = inputs[ref[1]].range
    return (r.lo, r.hi) if r is not None else (0, 0)
