"""Checks of one operator of a recipe: its keys, its arrays, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4._compat import TensorType
from tvm_q4.errors import InputError
from tvm_q4.frontend.recipe_schema import OP_SPECS, check_keys

Entry = dict[str, Any]
Constants = dict[str, NDArray]
_NARROW = ("int8", "uint8")
_MAX_SHIFT = 62


def check_op(entry: Entry, constants: Constants, inputs: list[TensorType]) -> None:
    """Raise InputError, with the operator's name, for anything that is not as it must be."""
    op, where = entry["op"], f"recipe op {entry['op']} {entry['name']!r}"
    spec = OP_SPECS[op]
    optional = {k for k, a in spec.arrays.items() if a.optional}
    required = {"op", "name", "inputs"} | (set(spec.arrays) - optional) | set(spec.attributes)
    check_keys(entry, required, optional, where)
    least, most = spec.tensors
    if not least <= len(inputs) <= most:
        raise InputError(f"{where}: has {len(inputs)} inputs, expected {least}")
    for key, attribute in spec.attributes.items():
        if not attribute.check(entry[key]):
            msg = f"{where}: {key} is {_short(entry[key])}, expected {attribute.expected}"
            raise InputError(msg)
    for key, array in constants.items():
        expected = spec.arrays[key]
        if str(array.dtype) != expected.dtype or array.ndim not in expected.ranks:
            ranks = " or ".join(str(r) for r in expected.ranks)
            msg = (
                f"{where}: array {key} is {array.dtype} {list(array.shape)}, expected "
                f"{expected.dtype} of rank {ranks}"
            )
            raise InputError(msg)
    _check_inputs(entry, inputs, where)
    _check_range(entry, where)
    if op in _CHECKS:
        _CHECKS[op](entry, constants, [[int(d) for d in t.shape] for t in inputs], where)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_inputs(entry: Entry, inputs: list[TensorType], where: str) -> None:
    """Only a quantizer reads floats; a convolution reads 8-bit containers in NCHW."""
    op, types = entry["op"], [str(t.dtype) for t in inputs]
    floats = op == "quantize"
    for dtype in types:
        if (dtype == "float32") != floats:
            wanted = "float32" if floats else "integers"
            raise InputError(f"{where}: its input is {dtype}, expected {wanted}")
    if op in ("conv2d", "dense") and types[0] not in _NARROW:
        raise InputError(f"{where}: its input is {types[0]}, expected int8 or uint8")
    rank = {"conv2d": 4, "max_pool2d": 4, "avg_pool2d": 4, "dense": 2}.get(op)
    if rank and len(inputs[0].shape) != rank:
        msg = f"{where}: its input has {len(inputs[0].shape)} dimensions, expected {rank}"
        raise InputError(msg)
    kept = "int32" if entry.get("rounding") == "sum" else types[0]
    if op in ("max_pool2d", "avg_pool2d", "concat") and {entry["dtype"]} != {kept, *types[1:]}:
        raise InputError(f"{where}: dtype is {entry['dtype']}, expected {kept} as its input is")


def _check_range(entry: Entry, where: str) -> None:
    lo, hi = (entry.get(a, entry.get(b)) for a, b in (("lo", "qmin"), ("hi", "qmax")))
    if lo is None:
        return
    dtype = entry["dtype"] if entry["dtype"] != "float32" else "int32"
    limits = np.iinfo(dtype)
    if not limits.min <= lo <= hi <= limits.max:
        raise InputError(f"{where}: range {lo}..{hi} does not fit its type {dtype}")


def _check_weight(entry: Entry, constants: Constants, shapes: list[list[int]], where: str) -> None:
    weight, bias, bits = constants["weight"], constants["bias"], entry["weight_bits"]
    if weight.size == 0:
        raise InputError(f"{where}: weight {list(weight.shape)} is empty")
    lo, hi = int(weight.min()), int(weight.max())
    if lo < -(1 << (bits - 1)) or hi >= 1 << (bits - 1):
        msg = (
            f"{where}: weights reach {lo}..{hi}, which {bits} bits do not hold; correct weight_bits"
        )
        raise InputError(msg)
    if bias.shape not in (weight.shape[:1], (1,)):
        msg = f"{where}: bias has {bias.size} values for {weight.shape[0]} output channels"
        raise InputError(msg)
    groups = entry.get("groups", 1)
    if shapes[0][1] != weight.shape[1] * groups or weight.shape[0] % groups:
        msg = (
            f"{where}: weight {list(weight.shape)} with {groups} group(s) does not fit "
            f"an input of {shapes[0][1]} channels"
        )
        raise InputError(msg)


def _check_channels(array: NDArray, key: str, shape: list[int], axis: int, where: str) -> None:
    """[1], [C], a scalar, or rank 4 that broadcasts to the tensor without growing it."""
    fits = array.size == 1 or (array.ndim == 1 and axis < len(shape) and array.size == shape[axis])
    if array.ndim == 4:
        fits = len(shape) == 4 and all(a in (1, s) for a, s in zip(array.shape, shape, strict=True))
    if not fits:
        msg = f"{where}: array {key} has shape {list(array.shape)}, the tensor {shape}"
        raise InputError(msg)


def _check_ratios(entry: Entry, constants: Constants, shapes: list[list[int]], where: str) -> None:
    for key, array in constants.items():
        _check_channels(array, key, shapes[0], 1, where)
        lo, hi = int(array.min()), int(array.max())
        if key.endswith("shift") and not 0 <= lo <= hi <= _MAX_SHIFT:
            raise InputError(f"{where}: {key} is {lo}..{hi}, expected 0..{_MAX_SHIFT}")
        if key.endswith("multiplier") and lo < 0:
            raise InputError(f"{where}: {key} is {lo}..{hi}; multipliers are not negative")


def _check_add(entry: Entry, constants: Constants, shapes: list[list[int]], where: str) -> None:
    _check_ratios(entry, constants, shapes, where)
    if shapes[0] != shapes[1]:
        raise InputError(f"{where}: its sides have shapes {shapes[0]} and {shapes[1]}")
    shift1, shift2 = constants["lhs_shift"], constants["rhs_shift"]
    if entry["form"] == "fused":
        same = shift1.shape == shift2.shape and bool((shift1 == shift2).all())
        if not same or int(shift1.min()) < 1:
            raise InputError(f"{where}: form fused needs one shift for both sides, 1 or more")
    unit = bool((constants["lhs_multiplier"] == 1).all() and (shift1 == 0).all())
    if entry["form"] == "accumulator" and not unit:
        raise InputError(f"{where}: form accumulator needs lhs multiplier 1 and shift 0")


def _check_step(entry: Entry, constants: Constants, shapes: list[list[int]], where: str) -> None:
    for key, array in constants.items():
        _check_channels(array, key, shapes[0], entry["axis"], where)
    scale = constants["scale"]
    with np.errstate(over="ignore", divide="ignore"):
        usable = np.isfinite(scale) & (scale.astype(np.float32) > 0) & (scale > 0)
        usable &= np.isfinite((1 / np.where(scale > 0, scale, 1)).astype(np.float32))
        usable &= np.isfinite(scale.astype(np.float32))
    if not usable.all():
        bad = scale.ravel()[int(np.argmin(usable.ravel()))]
        raise InputError(f"{where}: scale {bad!r} is not a positive float32")


def _check_reshape(
    entry: Entry, _constants: Constants, shapes: list[list[int]], where: str
) -> None:
    if prod(entry["shape"]) != prod(shapes[0][1:]):
        msg = f"{where}: shape {entry['shape']} does not hold the values of {shapes[0][1:]}"
        raise InputError(msg)


def _check_permute(
    entry: Entry, _constants: Constants, shapes: list[list[int]], where: str
) -> None:
    axes = entry["axes"]
    if sorted(axes) != list(range(len(shapes[0]))) or axes[0] != 0:
        raise InputError(f"{where}: axes {axes} must keep the batch first and name each axis once")


def _check_slice(entry: Entry, _constants: Constants, shapes: list[list[int]], where: str) -> None:
    axes = entry["axes"]
    lengths = {len(entry[k]) for k in ("axes", "begin", "end", "strides")}
    if len(lengths) != 1 or len(set(axes)) != len(axes):
        raise InputError(
            f"{where}: axes, begin, end and strides must have one length, each axis once"
        )
    if any(not 0 < axis < len(shapes[0]) for axis in axes):
        raise InputError(f"{where}: axes {axes} must lie in 1..{len(shapes[0]) - 1}")


def _check_pad(entry: Entry, _constants: Constants, shapes: list[list[int]], where: str) -> None:
    width = entry["pad_width"]
    if len(width) != 2 * len(shapes[0]) or any(width[:2]):
        msg = (
            f"{where}: pad_width needs two values for each of {len(shapes[0])} axes, 0 for "
            "the batch"
        )
        raise InputError(msg)


def _check_pool(entry: Entry, _constants: Constants, _shapes: list[list[int]], where: str) -> None:
    if entry["op"] == "avg_pool2d" and entry["dilation"] != [1, 1]:
        raise InputError(f"{where}: dilation is {entry['dilation']}, expected [1, 1]")


def _check_concat(entry: Entry, _constants: Constants, shapes: list[list[int]], where: str) -> None:
    axis = entry["axis"]
    if not 0 < axis < len(shapes[0]):
        raise InputError(f"{where}: axis {axis} must lie in 1..{len(shapes[0]) - 1}")
    if len({(*s[:axis], *s[axis + 1 :]) for s in shapes}) != 1:
        raise InputError(f"{where}: inputs {shapes} differ beyond axis {axis}")


_CHECKS: dict[str, Callable[[Entry, Constants, list[list[int]], str], None]] = {
    "quantize": _check_step,
    "dequantize": _check_step,
    "conv2d": _check_weight,
    "dense": _check_weight,
    "requantize": _check_ratios,
    "add": _check_add,
    "avg_pool2d": _check_pool,
    "concat": _check_concat,
    "reshape": _check_reshape,
    "permute_dims": _check_permute,
    "strided_slice": _check_slice,
    "pad": _check_pad,
}
