"""The q4 operators on NumPy arrays, exact. Each takes its tensors and its attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError, NumericsError, UnsupportedError
from tvm_q4.ops import pool_output
from tvm_q4.quant import INT32_MAX, INT32_MIN, round_shift
from tvm_q4.reference_ops.linear import int_conv2d, int_matmul
from tvm_q4.reference_ops.windows import window_counts, windows

Attrs = dict[str, Any]
_MAX_SHIFT = 62


def _where(op: str, a: Attrs) -> str:
    return f"q4.{op} {a.get('name', '?')!r}"


def _store(value: NDArray, lo: int, hi: int, a: Attrs, op: str) -> NDArray:
    """Clamp to (lo, hi) and narrow to the attribute ``dtype``; the full int32 range is no clamp."""
    dtype = np.dtype(a["dtype"])
    limits = np.iinfo(dtype)
    if lo < limits.min or hi > limits.max or lo > hi:
        msg = f"{_where(op, a)}: range {lo}..{hi} does not fit its type {dtype}; mend the model"
        raise NumericsError(msg)
    if (lo, hi) == (INT32_MIN, INT32_MAX):
        return checked_int32(value, _where(op, a))
    return np.clip(value, lo, hi).astype(dtype)


def checked_int32(value: NDArray, where: str) -> NDArray[np.int32]:
    """`value` as int32; an error where an element does not fit, since a kernel would wrap there."""
    if value.dtype != np.int32 and value.size:
        least, most = int(value.min()), int(value.max())
        if least < INT32_MIN or most > INT32_MAX:
            worst = least if least < INT32_MIN else most
            msg = f"{where}: value {worst} overflows int32; use smaller scales or more bits"
            raise NumericsError(msg)
    return value.astype(np.int32, copy=False)


def _along(param: NDArray, rank: int, axis: int = 1) -> NDArray:
    """Shape a per-channel parameter so that it broadcasts along `axis`."""
    if param.ndim > 1 or param.size == 1:
        return param if param.ndim > 1 else param.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return param.reshape(shape)


def _ratio(
    m: NDArray, e: NDArray, rank: int, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if e.size and (int(e.min()) < 0 or int(e.max()) > _MAX_SHIFT):
        msg = (
            f"{where}: shift {int(e.min())}..{int(e.max())} is outside 0..{_MAX_SHIFT}; mend "
            "the model"
        )
        raise NumericsError(msg)
    return _along(m.astype(np.int64), rank), _along(e.astype(np.int64), rank)


def quantize(x: NDArray, scale: NDArray, zero_point: NDArray, a: Attrs) -> NDArray:
    """Float32 to integer in float32, half-even; NaN is an error, infinities clamp."""
    if np.isnan(x).any():
        msg = f"{_where('quantize', a)}: the float input holds NaN; an integer cannot stand for it"
        raise InputError(msg)
    scaled = _scaled(x.astype(np.float32, copy=False), scale, a)
    z = _along(zero_point.astype(np.int64), x.ndim, a["axis"])
    # float64 holds every float32 and every bound exactly, so the clamp comes before the conversion.
    steps = np.clip(np.rint(scaled).astype(np.float64) + z, a["qmin"], a["qmax"])
    return _store(steps.astype(np.int64), a["qmin"], a["qmax"], a, "quantize")


def _scaled(x: NDArray[np.float32], scale: NDArray, a: Attrs) -> NDArray[np.float32]:
    form = a["form"]
    with np.errstate(over="ignore", divide="ignore"):
        if form == "reciprocal":
            factor = _along((1.0 / scale.astype(np.float64)).astype(np.float32), x.ndim, a["axis"])
        elif form == "divide":
            factor = _along(scale.astype(np.float32), x.ndim, a["axis"])
        elif form == "mul_div":
            factor = np.float32(a["denominator"])
        else:
            msg = (
                f"{_where('quantize', a)}: form {form!r} is unknown; use reciprocal, divide "
                "or mul_div"
            )
            raise UnsupportedError(msg)
        if not (np.isfinite(factor).all() and (factor > 0).all()):
            msg = (
                f"{_where('quantize', a)}: scale {float(scale.flat[0])!r} has no positive "
                "float32 form"
            )
            raise NumericsError(msg)
        if form == "reciprocal":
            return x * factor
        return (x * np.float32(a["numerator"]) if form == "mul_div" else x) / factor


def dequantize(q: NDArray, scale: NDArray, zero_point: NDArray, a: Attrs) -> NDArray[np.float32]:
    """``float32(q - z) * float32(s)``, or the quotient with form ``divide``."""
    s = _along(scale.astype(np.float32), q.ndim, a["axis"])
    steps = (q.astype(np.int64) - _along(zero_point.astype(np.int64), q.ndim, a["axis"])).astype(
        np.float32
    )
    if a["form"] == "multiply":
        return steps * s
    if a["form"] == "divide":
        return steps / s
    msg = f"{_where('dequantize', a)}: form {a['form']!r} is unknown; use multiply or divide"
    raise UnsupportedError(msg)


def conv2d(x: NDArray, weight: NDArray, bias: NDArray, a: Attrs) -> NDArray[np.int32]:
    """``sum(w * x) + bias`` over raw values, padding filled with the zero point."""
    where = _where("conv2d", a)
    acc = int_conv2d(
        x, weight, a["strides"], a["padding"], a["dilation"], a["groups"], fill=a["zero_point"]
    )
    return _biased(acc, _along(bias, 4), where)


def dense(x: NDArray, weight: NDArray, bias: NDArray, a: Attrs) -> NDArray[np.int32]:
    """``x @ weight.T + bias``."""
    return _biased(int_matmul(x, weight), bias, _where("dense", a))


def _biased(acc: NDArray, bias: NDArray, where: str) -> NDArray[np.int32]:
    """Add an int32 bias to float accumulators that are exact integers."""
    least = min(int(acc.min()), 0) + min(int(bias.min()), 0) if acc.size else 0
    most = max(int(acc.max()), 0) + max(int(bias.max()), 0) if acc.size else 0
    if least >= INT32_MIN and most <= INT32_MAX:
        out = acc.astype(np.int32)
        out += bias
        return out
    return checked_int32(acc.astype(np.int64) + bias, where)


def requantize(x: NDArray, m: NDArray, e: NDArray, *rest: Any) -> NDArray:
    """``clamp(z + offset + round((x - z_in) * m / 2**e), lo, hi)``; `rest`: [offset,] attrs."""
    *offset, a = rest
    mul, shift = _ratio(m, e, x.ndim, _where("requantize", a))
    value = x.astype(np.int64)
    if a["in_zero_point"]:
        value -= a["in_zero_point"]
    value *= mul
    value = round_shift(value, shift, a["rounding"])
    if a["zero_point"]:
        value += a["zero_point"]
    if offset:
        value += _along(offset[0].astype(np.int64), x.ndim)
    return _store(value, a["lo"], a["hi"], a, "requantize")


def add(
    lhs: NDArray, rhs: NDArray, m1: NDArray, e1: NDArray, m2: NDArray, e2: NDArray, a: Attrs
) -> NDArray:
    """Residual add in one of its three forms (numerics.md)."""
    where = _where("add", a)
    if lhs.shape != rhs.shape:
        msg = (
            f"{where}: operands have shapes {list(lhs.shape)} and {list(rhs.shape)}; they "
            "must be equal"
        )
        raise InputError(msg)
    left, right = (
        lhs.astype(np.int64) - a["lhs_zero_point"],
        rhs.astype(np.int64) - a["rhs_zero_point"],
    )
    mul1, shift1 = _ratio(m1, e1, lhs.ndim, where)
    mul2, shift2 = _ratio(m2, e2, lhs.ndim, where)
    form = a["form"]
    if form == "fused":
        _check_fused(left, right, mul1, mul2, shift1, shift2, where)
        total = round_shift(left * mul1 + right * mul2, shift1, a["rounding"])
    elif form in ("two_sided", "accumulator"):
        if form == "accumulator" and not ((m1 == 1).all() and (e1 == 0).all()):
            msg = f"{where}: form accumulator takes its left side as it is (multiplier 1, shift 0)"
            raise NumericsError(msg)
        sides = ((left * mul1, shift1), (right * mul2, shift2))
        one, two = (
            checked_int32(round_shift(p, e, a["rounding"]), where).astype(np.int64)
            for p, e in sides
        )
        total = one + two
        checked_int32(total, where)
    else:
        msg = f"{where}: form {form!r} is unknown; use fused, accumulator or two_sided"
        raise UnsupportedError(msg)
    return _store(total + a["zero_point"], a["lo"], a["hi"], a, "add")


def _check_fused(
    left: NDArray, right: NDArray, m1: NDArray, m2: NDArray, e1: NDArray, e2: NDArray, where: str
) -> None:
    """One common shift of at least 1, and sums that fit int64."""
    if not np.array_equal(e1, e2) or (e1.size and int(e1.min()) < 1):
        msg = f"{where}: form fused needs one shift for both sides, 1 or more; use two_sided"
        raise NumericsError(msg)
    bound = sum(
        max(abs(int(v.min())), abs(int(v.max()))) * int(np.abs(m).max())
        for v, m in ((left, m1), (right, m2))
        if v.size
    )
    if bound + (1 << (int(e1.max()) - 1)) >= 1 << 63:
        msg = f"{where}: the sum of both products may overflow int64; use form two_sided"
        raise NumericsError(msg)


def _pool_size(x: NDArray, a: Attrs, op: str) -> tuple[int, int]:
    return pool_output(
        x.shape[2:],
        a["pool_size"],
        a["strides"],
        a["padding"],
        a["dilation"],
        a["ceil_mode"],
        _where(op, a),
    )


def max_pool2d(x: NDArray, a: Attrs) -> NDArray:
    """Maximum of each window; padding is the type's lowest value and never wins."""
    out = _pool_size(x, a, "max_pool2d")
    geometry = (a["pool_size"], a["strides"], a["padding"], a["dilation"], out)
    if (window_counts(x.shape[2:], *geometry, include_pad=False) == 0).any():
        msg = f"{_where('max_pool2d', a)}: a window holds padding alone; its maximum is undefined"
        raise UnsupportedError(msg)
    view = windows(x, *geometry, fill=np.iinfo(x.dtype).min)
    result = view[..., 0, 0].copy()
    for i in range(view.shape[4]):
        for j in range(view.shape[5]):
            np.maximum(result, view[..., i, j], out=result)
    return result


def avg_pool2d(x: NDArray, a: Attrs) -> NDArray:
    """Sum of ``x - z`` in int32, or its rounded mean plus z."""
    where = _where("avg_pool2d", a)
    out = _pool_size(x, a, "avg_pool2d")
    geometry = (a["pool_size"], a["strides"], a["padding"], a["dilation"], out)
    view = windows(x.astype(np.int64) - a["zero_point"], *geometry, fill=0)
    total = checked_int32(view.sum(axis=(4, 5)), where)
    if a["rounding"] == "sum":
        return total
    n = window_counts(x.shape[2:], *geometry, include_pad=a["count_include_pad"])
    if (n == 0).any():
        msg = (
            f"{where}: a window holds padding alone and padding is not counted; its mean is "
            "undefined"
        )
        raise UnsupportedError(msg)
    size = np.abs(total.astype(np.int64))
    if a["rounding"] == "nearest":
        size += n // 2
    elif a["rounding"] != "truncate":
        msg = f"{where}: rounding {a['rounding']!r} is unknown; use sum, truncate or nearest"
        raise UnsupportedError(msg)
    mean = np.sign(total) * (size // n) + a["zero_point"]
    limits = np.iinfo(x.dtype)
    return _store(mean, limits.min, limits.max, a, "avg_pool2d")


def concat(*rest: Any) -> NDArray:
    """Join tensors of one scale; `rest` is the tensors and the attributes."""
    *inputs, a = rest
    kinds = sorted({str(x.dtype) for x in inputs})
    if kinds != [a["dtype"]]:
        msg = (
            f"{_where('concat', a)}: inputs have types {kinds}, the result {a['dtype']}; "
            "requantize first"
        )
        raise InputError(msg)
    return np.concatenate(inputs, axis=a["axis"])


Q4_OPS: dict[str, Callable[..., NDArray]] = {
    "q4.quantize": quantize,
    "q4.dequantize": dequantize,
    "q4.conv2d": conv2d,
    "q4.dense": dense,
    "q4.requantize": requantize,
    "q4.add": add,
    "q4.max_pool2d": max_pool2d,
    "q4.avg_pool2d": avg_pool2d,
    "q4.concat": concat,
}
