"""Emit a layer's epilogue on vectors: what follows the bias is requantize, add, dequantize.

Multipliers, shifts and offsets are read from per-channel arrays; products are 64-bit except where
the layer's bounds prove that 32 bits hold them (`Op.narrow`), and only their high words are kept
where that is exact (`Op.high`), with the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_q4._compat import tirx
from tvm_q4.quant import INT32_MAX, INT32_MIN
from tvm_q4.schedules import lanes
from tvm_q4.schedules.high_word import sum_of_products_high
from tvm_q4.schedules.layer import Layer, Op
from tvm_q4.schedules.layout import LANES

Param = Callable[[int, str], Any]
Load = Callable[[int], Any]


class _Epilogue:
    """Emits operators on vectors of `width` lanes; a width of 1 is one value of a GPU thread.

    `terms` are two expressions whose sum is the value `whole` (see `emit_epilogue`).
    """

    def __init__(self, width: int, whole: Any = None, terms: list[Any] | None = None) -> None:
        self.width, self.whole, self.terms = width, whole, terms
        self.clamps = True

    def splat(self, value: int, dtype: str) -> Any:
        return lanes.splat(value, dtype, self.width)

    def cast(self, value: Any, dtype: str) -> Any:
        return lanes.cast(value, dtype, self.width)

    def round_shift(self, value: Any, shift: Any, op: Op, work: str) -> Any:
        shift = self.cast(shift, work)
        return lanes.round_shift(value, shift, op.attrs["rounding"], work, self.width)

    def narrowed(self, value: Any, op: Op, work: str) -> Any:
        """Clamp to the operator's range and convert; an open int32 range needs no clamp."""
        a = op.attrs
        if not self.clamps and work == "int32":
            return value
        if (a["lo"], a["hi"]) != (INT32_MIN, INT32_MAX):
            lo, hi = max(a["lo"], INT32_MIN), min(a["hi"], INT32_MAX)
            value = lanes.clamp(value, lo, hi, work, self.width)
        return self.cast(value, op.dtype)

    def minus(self, value: Any, zero: int, work: str) -> Any:
        wide = self.cast(value, work)
        return wide - self.splat(zero, work) if zero else wide

    def summands(self, value: Any, zero: int, before: int) -> list[Any]:
        """Expressions whose sum is ``(value - zero) << before``."""
        if self.terms and not zero and not before and value.same_as(self.whole):
            return self.terms
        value = self.minus(value, zero, "int32")
        return [value << self.splat(before, "int32") if before else value]

    def from_high_words(
        self, op: Op, values: list[Any], names: tuple[str, ...], param: Callable[[str], Any]
    ) -> Any:
        """Sum of the values' products, rounded and shifted once, on 32-bit lanes."""
        assert op.high is not None
        products = []
        for value, before, name in zip(values, op.high, names, strict=True):
            terms = self.summands(value, op.attrs[f"{name or 'in_'}zero_point"], before)
            products.append((terms, param(f"{name}multiplier")))
        value = sum_of_products_high(products, param(f"{names[0]}shift"), self.width)
        if op.attrs["zero_point"]:
            value = value + self.splat(op.attrs["zero_point"], "int32")
        return self.narrowed(value, op, "int32")

    def requantize(self, op: Op, x: Any, param: Callable[[str], Any]) -> Any:
        if op.high is not None:
            return self.from_high_words(op, [x], ("",), param)
        work, a = ("int32" if op.narrow else "int64"), op.attrs
        multiplier = self.cast(param("multiplier"), work)
        product = self.minus(x, a["in_zero_point"], work) * multiplier
        value = self.round_shift(product, param("shift"), op, work)
        if "offset" in op.params:
            value = value + self.cast(param("offset"), work)
        if a["zero_point"]:
            value = value + self.splat(a["zero_point"], work)
        return self.narrowed(value, op, work)

    def add(self, op: Op, lhs: Any, rhs: Any, param: Callable[[str], Any]) -> Any:
        if op.high is not None:
            return self.from_high_words(op, [lhs, rhs], ("lhs_", "rhs_"), param)
        work, a = ("int32" if op.narrow else "int64"), op.attrs
        left = self.minus(lhs, a["lhs_zero_point"], work)
        right = self.minus(rhs, a["rhs_zero_point"], work)
        sides = []
        for side, value in (("lhs", left), ("rhs", right)):
            if op.unit(side):
                sides.append(value)
                continue
            product = value * self.cast(param(f"{side}_multiplier"), work)
            if a["form"] != "fused":
                product = self.round_shift(product, param(f"{side}_shift"), op, work)
            sides.append(product)
        value = sides[0] + sides[1]
        if a["form"] == "fused":
            value = self.round_shift(value, param("lhs_shift"), op, work)
        if a["zero_point"]:
            value = value + self.splat(a["zero_point"], work)
        return self.narrowed(value, op, work)

    def dequantize(self, op: Op, x: Any, param: Callable[[str], Any]) -> Any:
        zero = int(op.params["zero_point"].ravel()[0])
        real = self.cast(self.minus(x, zero, "int32"), "float32")
        scale = param("scale")
        return tirx.div(real, scale) if op.attrs["form"] == "divide" else real * scale


def emit_epilogue(
    layer: Layer,
    anchor: Any,
    load: Load,
    param: Param,
    width: int = LANES,
    unclamped: frozenset[int] = frozenset(),
    terms: list[Any] | None = None,
) -> list[Any]:
    """Vectors of every operator's result, indexed as ``layer.ops``.

    Parameters
    ----------
    layer : Layer
    anchor : expression or None
        The anchor's vector (int32 accumulators with the bias, or pooled values); None for an
        element-wise layer.
    load : callable
        ``load(i)`` gives the vector of external input i at the current position.
    param : callable
        ``param(op index, name)`` gives that constant's vector at the current channels.
    width : int
        Lanes of a vector; 1 for scalars.
    unclamped : frozenset of int
        Operators whose results the caller limits to their range: they may stay int32, unlimited.
    terms : list of expression, optional
        Accumulator and bias whose sum the scalar `anchor` is: a bias that is multiplied apart is
        multiplied once for many pixels.
    """
    emitter = _Epilogue(width, anchor, terms)
    values: list[Any] = [anchor] if layer.anchor else []
    for index, op in layer.epilogue:
        args = [values[i] if kind == "op" else load(i) for kind, i in op.refs]
        emitter.clamps = index not in unclamped

        def own(name: str, index: int = index) -> Any:
            return param(index, name)

        if op.kind == "requantize":
            values.append(emitter.requantize(op, args[0], own))
        elif op.kind == "add":
            values.append(emitter.add(op, args[0], args[1], own))
        else:
            values.append(emitter.dequantize(op, args[0], own))
    return values
