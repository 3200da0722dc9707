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
from tvm_q4.schedules.high_word import products, round_shift_high
from tvm_q4.schedules.layer import Layer, Op

Param = Callable[[int, str], Any]
Load = Callable[[int], Any]


def _narrowed(value: Any, op: Op, work: str) -> Any:
    """Clamp to the operator's range and convert to its type; an open int32 range needs no clamp."""
    a = op.attrs
    if (a["lo"], a["hi"]) != (INT32_MIN, INT32_MAX):
        value = lanes.clamp(value, max(a["lo"], INT32_MIN), min(a["hi"], INT32_MAX), work)
    return lanes.cast(value, op.dtype)


def _minus(value: Any, zero: int, work: str) -> Any:
    wide = lanes.cast(value, work)
    return wide - lanes.splat(zero, work) if zero else wide


def _from_high_words(
    op: Op, values: list[Any], names: tuple[str, ...], param: Callable[[str], Any]
) -> Any:
    """Sum of the values' products, rounded and shifted once, on 32-bit lanes."""
    assert op.high is not None
    pairs = []
    for value, before, name in zip(values, op.high, names, strict=True):
        doubled = value << lanes.splat(before, "int32") if before else value
        pairs.append(products(doubled, param(f"{name}multiplier")))
    even, odd = pairs[0]
    for more_even, more_odd in pairs[1:]:
        even, odd = even + more_even, odd + more_odd
    value = round_shift_high(even, odd, param(f"{names[0]}shift"))
    if op.attrs["zero_point"]:
        value = value + lanes.splat(op.attrs["zero_point"], "int32")
    return _narrowed(value, op, "int32")


def _requantize(op: Op, x: Any, param: Callable[[str], Any]) -> Any:
    if op.high is not None:
        value = _minus(x, op.attrs["in_zero_point"], "int32")
        return _from_high_words(op, [value], ("",), param)
    work, a = ("int32" if op.narrow else "int64"), op.attrs
    product = _minus(x, a["in_zero_point"], work) * lanes.cast(param("multiplier"), work)
    value = lanes.round_shift(product, lanes.cast(param("shift"), work), a["rounding"], work)
    if "offset" in op.params:
        value = value + lanes.cast(param("offset"), work)
    if a["zero_point"]:
        value = value + lanes.splat(a["zero_point"], work)
    return _narrowed(value, op, work)


def _add(op: Op, lhs: Any, rhs: Any, param: Callable[[str], Any]) -> Any:
    if op.high is not None:
        values = [
            _minus(lhs, op.attrs["lhs_zero_point"], "int32"),
            _minus(rhs, op.attrs["rhs_zero_point"], "int32"),
        ]
        return _from_high_words(op, values, ("lhs_", "rhs_"), param)
    work, a = ("int32" if op.narrow else "int64"), op.attrs
    left = _minus(lhs, a["lhs_zero_point"], work)
    right = _minus(rhs, a["rhs_zero_point"], work)
    sides = []
    for side, value in (("lhs", left), ("rhs", right)):
        if op.unit(side):
            sides.append(value)
            continue
        product = value * lanes.cast(param(f"{side}_multiplier"), work)
        if a["form"] != "fused":
            shift = lanes.cast(param(f"{side}_shift"), work)
            product = lanes.round_shift(product, shift, a["rounding"], work)
        sides.append(product)
    value = sides[0] + sides[1]
    if a["form"] == "fused":
        value = lanes.round_shift(value, lanes.cast(param("lhs_shift"), work), a["rounding"], work)
    if a["zero_point"]:
        value = value + lanes.splat(a["zero_point"], work)
    return _narrowed(value, op, work)


def _dequantize(op: Op, x: Any, param: Callable[[str], Any]) -> Any:
    zero = int(op.params["zero_point"].ravel()[0])
    real = lanes.cast(_minus(x, zero, "int32"), "float32")
    scale = param("scale")
    return tirx.div(real, scale) if op.attrs["form"] == "divide" else real * scale


def emit_epilogue(layer: Layer, anchor: Any, load: Load, param: Param) -> list[Any]:
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
    """
    values: list[Any] = [anchor] if layer.anchor else []
    for index, op in layer.epilogue:
        args = [values[i] if kind == "op" else load(i) for kind, i in op.refs]

        def own(name: str, index: int = index) -> Any:
            return param(index, name)

        if op.kind == "requantize":
            values.append(_requantize(op, args[0], own))
        elif op.kind == "add":
            values.append(_add(op, args[0], args[1], own))
        else:
            values.append(_dequantize(op, args[0], own))
    return values
