"""What a recipe may hold: operators, their attributes and their arrays, and how each is checked.

One table serves the reader and the writer, so that they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvm_q4.errors import InputError
from tvm_q4.ops import AVG_ROUNDINGS, DEQUANTIZE_FORMS, QUANTIZE_FORMS, RESIDUAL_FORMS
from tvm_q4.quant import INT32_MAX, INT32_MIN, ROUNDINGS

FORMAT = "tvm-q4/recipe"
VERSION = 1
GRAPH_FILE, ARRAY_FILE = "graph.json", "model.npz"

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Attribute:
    """An attribute of an operator: whether a JSON value is one, and what to say if it is not."""

    check: Check
    expected: str


@dataclass(frozen=True)
class ArraySpec:
    """A constant array of an operator."""

    dtype: str
    ranks: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class OpSpec:
    """An operator of a recipe; `arrays` follow the tensors as arguments, in this order."""

    tensors: tuple[int, int]
    arrays: dict[str, ArraySpec] = field(default_factory=dict)
    attributes: dict[str, Attribute] = field(default_factory=dict)


def is_int(value: Any) -> bool:
    """Whether a JSON value is an integer; ``true`` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def integer(lo: int = INT32_MIN, hi: int = INT32_MAX) -> Attribute:
    """An integer in lo..hi."""
    return Attribute(lambda v: is_int(v) and lo <= v <= hi, f"an integer in {lo}..{hi}")


def integers(count: int | None, lo: int, hi: int = INT32_MAX) -> Attribute:
    """A list of `count` integers (any number if None), each in lo..hi."""

    def check(v: Any) -> bool:
        return (
            isinstance(v, list)
            and (count is None or len(v) == count)
            and all(is_int(x) and lo <= x <= hi for x in v)
        )

    return Attribute(check, f"a list of {count or 'any number of'} integers, each in {lo}..{hi}")


def choice(*names: str) -> Attribute:
    """One of some names."""
    return Attribute(lambda v: isinstance(v, str) and v in names, f"one of {', '.join(names)}")


def _positive(v: Any) -> bool:
    return isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) and v > 0


BOOLEAN = Attribute(lambda v: isinstance(v, bool), "true or false")
POSITIVE = Attribute(_positive, "a positive finite number")
NUMBER = Attribute(
    lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v),
    "a finite number",
)
_INTEGER_TYPES = choice("int8", "uint8", "int16", "uint16", "int32")
_ROUNDING = choice(*ROUNDINGS)
_STEP = ArraySpec("float64", (0, 1))
_POINT = ArraySpec("int32", (0, 1))
_RATIO = ArraySpec("int32", (1, 4))
_WINDOW = {
    "pool_size": integers(2, 1),
    "strides": integers(2, 1),
    "padding": integers(4, 0),
    "dilation": integers(2, 1),
    "ceil_mode": BOOLEAN,
    "dtype": _INTEGER_TYPES,
}
_CLAMP = {"lo": integer(), "hi": integer(), "dtype": _INTEGER_TYPES}
_INT64 = 2**63 - 1

Q4_SPECS: dict[str, OpSpec] = {
    "quantize": OpSpec(
        (1, 1),
        {"scale": _STEP, "zero_point": _POINT},
        {
            "qmin": integer(),
            "qmax": integer(),
            "dtype": _INTEGER_TYPES,
            "axis": integer(0, 3),
            "form": choice(*QUANTIZE_FORMS),
            "numerator": POSITIVE,
            "denominator": POSITIVE,
        },
    ),
    "dequantize": OpSpec(
        (1, 1),
        {"scale": _STEP, "zero_point": _POINT},
        {
            "qmin": integer(),
            "qmax": integer(),
            "dtype": choice("float32"),
            "axis": integer(0, 3),
            "form": choice(*DEQUANTIZE_FORMS),
        },
    ),
    "conv2d": OpSpec(
        (1, 1),
        {"weight": ArraySpec("int8", (4,)), "bias": ArraySpec("int32", (1,))},
        {
            "strides": integers(2, 1),
            "padding": integers(4, 0),
            "dilation": integers(2, 1),
            "groups": integer(1),
            "zero_point": integer(),
            "weight_bits": integer(2, 8),
        },
    ),
    "dense": OpSpec(
        (1, 1),
        {"weight": ArraySpec("int8", (2,)), "bias": ArraySpec("int32", (1,))},
        {"zero_point": integer(), "weight_bits": integer(2, 8)},
    ),
    "requantize": OpSpec(
        (1, 1),
        {
            "multiplier": _RATIO,
            "shift": _RATIO,
            "offset": ArraySpec("int32", (1,), optional=True),
        },
        {**_CLAMP, "zero_point": integer(), "in_zero_point": integer(), "rounding": _ROUNDING},
    ),
    "add": OpSpec(
        (2, 2),
        {
            "lhs_multiplier": _RATIO,
            "lhs_shift": _RATIO,
            "rhs_multiplier": _RATIO,
            "rhs_shift": _RATIO,
        },
        {
            **_CLAMP,
            "form": choice(*RESIDUAL_FORMS),
            "lhs_zero_point": integer(),
            "rhs_zero_point": integer(),
            "zero_point": integer(),
            "rounding": _ROUNDING,
        },
    ),
    "max_pool2d": OpSpec((1, 1), {}, _WINDOW),
    "avg_pool2d": OpSpec(
        (1, 1),
        {},
        {
            **_WINDOW,
            "count_include_pad": BOOLEAN,
            "rounding": choice(*AVG_ROUNDINGS),
            "zero_point": integer(),
        },
    ),
    "concat": OpSpec((1, 1024), {}, {"axis": integer(0, 3), "dtype": _INTEGER_TYPES}),
}

MOVEMENT_SPECS: dict[str, OpSpec] = {
    "reshape": OpSpec((1, 1), {}, {"shape": integers(None, 1)}),
    "permute_dims": OpSpec((1, 1), {}, {"axes": integers(None, 0, 7)}),
    "strided_slice": OpSpec(
        (1, 1),
        {},
        {
            "axes": integers(None, 0, 7),
            "begin": integers(None, -_INT64, _INT64),
            "end": integers(None, -_INT64, _INT64),
            "strides": integers(None, 1),
        },
    ),
    "pad": OpSpec((1, 1), {}, {"pad_width": integers(None, 0), "value": NUMBER}),
}

OP_SPECS = Q4_SPECS | MOVEMENT_SPECS


def check_keys(entry: Any, required: set[str], optional: set[str], where: str) -> None:
    """`entry` must be an object with all `required` keys and none beyond `optional`."""
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object, found {type(entry).__name__}")
    missing = sorted(required - set(entry))
    if missing:
        raise InputError(
            f"{where}: key {missing[0]!r} is missing; add it or export the recipe again"
        )
    unknown = sorted(set(entry) - required - optional)
    if unknown:
        raise InputError(f"{where}: key {unknown[0]!r} is unknown; remove it or use a newer tvm-q4")
