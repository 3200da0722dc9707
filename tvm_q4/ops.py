"""The q4 dialect: Relax operators with integer semantics, registered from Python.

Tensors are logical NCHW (or NC), weights OIHW (or OI) in 8-bit containers; physical layouts and
packing come later. Every call carries a ``DictAttrs`` whose ``name`` is the name of the tensor it
makes (unique in the module; for ``conv2d`` and ``dense`` it is the layer's name). Scales are
float64 constants, multipliers, shifts and biases int32 constants. Semantics: ``numerics.md``;
executable definition: `tvm_q4.reference`.

============  =======================================  ==========================================
operator      arguments                                result
============  =======================================  ==========================================
quantize      x f32, scale f64, zero_point i32         clamp(rint(x / s) + z, qmin, qmax)
dequantize    q int, scale f64, zero_point i32         float32(q - z) * float32(s)
conv2d        x int, weight i8 OIHW, bias i32 [O]      int32 sum(w * x_padded) + bias
dense         x int [N, I], weight i8 [O, I], bias     int32 sum(w * x) + bias
requantize    x int, m i32, e i32 [, offset i32]       clamp(z + offset + round((x - z_in) m / 2^e))
add           lhs, rhs int, m1, e1, m2, e2             residual add, three forms
max_pool2d    x int                                    same range as x
avg_pool2d    x int                                    int32 sum, or the rounded mean
concat        x0, x1, ... int of one scale             joined along axis
============  =======================================  ==========================================

``m`` and ``e`` are int32 arrays of shape [1] or [C] (channel axis 1), or of rank 4 where they
differ by position (average pools that count varying positions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import ArrayLike
from tvm import relax

from tvm_q4 import errors
from tvm_q4._compat import GenericConst, register_op
from tvm_q4.op_types import TYPES, ints
from tvm_q4.op_types import pool_output as pool_output
from tvm_q4.op_types import pooled_size as pooled_size

RESIDUAL_FORMS = ("fused", "accumulator", "two_sided")
AVG_ROUNDINGS = ("sum", "truncate", "nearest")
QUANTIZE_FORMS = ("reciprocal", "divide", "mul_div")
DEQUANTIZE_FORMS = ("multiply", "divide")


def _register() -> None:
    for name, infer in TYPES.items():
        op = f"q4.{name}"
        register_op(op, f"tvm-q4 {name}; see tvm_q4.ops")
        tvm.ir.register_op_attr(op, "FInferType", infer)
        tvm.ir.register_op_attr(op, "FPurity", True)
        tvm.ir.register_op_attr(op, "TScriptPrinterName", op)


_register()

for _error in (errors.Q4Error, *errors.Q4Error.__subclasses__()):
    # Else an exception raised inside a pass comes back from TVM's C++ as a plain RuntimeError.
    tvm_ffi.register_error(_error.__name__, _error)


def attrs_of(call: relax.Call) -> dict[str, Any]:
    """Attributes of a q4 call as plain Python values (arrays as lists of int)."""
    out: dict[str, Any] = {}
    for key, value in call.attrs.items():
        if isinstance(value, (str, bool)):
            out[str(key)] = str(value) if isinstance(value, str) else value
        elif isinstance(value, (int, float)):
            out[str(key)] = value
        else:
            out[str(key)] = ints(value)
    return out


def const_array(expr: relax.Expr) -> np.ndarray:
    """NumPy array of a Relax constant."""
    assert isinstance(expr, GenericConst), f"expected a constant, found {type(expr).__name__}"
    return expr.value.numpy()


def is_q4(expr: relax.Expr, name: str | None = None) -> bool:
    """Whether `expr` is a call of a q4 operator (of that name, without the ``q4.`` prefix)."""
    if not isinstance(expr, relax.Call) or not isinstance(expr.op, tvm.ir.Op):
        return False
    op = expr.op.name
    return op == f"q4.{name}" if name else op.startswith("q4.")


def call(op: str, args: Sequence[relax.Expr], **attrs: Any) -> relax.Call:
    """Build ``q4.<op>(*args)`` with `attrs`; all integer sequences become arrays of int."""
    node = tvm.ir.make_node("ir.DictAttrs", **attrs)
    return relax.Call(tvm.ir.Op.get(f"q4.{op}"), list(args), node)


def _const(value: ArrayLike, dtype: str) -> GenericConst:
    return relax.const(np.asarray(value, dtype=dtype), dtype)


def _i32(value: ArrayLike | relax.Expr) -> relax.Expr:
    return value if isinstance(value, relax.Expr) else _const(np.atleast_1d(value), "int32")


def quantize(
    x: relax.Expr,
    scale: ArrayLike,
    zero_point: ArrayLike,
    *,
    name: str,
    qmin: int,
    qmax: int,
    dtype: str,
    axis: int = 1,
    form: str = "reciprocal",
    numerator: float = 1.0,
    denominator: float = 1.0,
) -> relax.Call:
    """Float32 to integer, half-even. `scale` (float64), `zero_point`: scalars or [C] on `axis`.

    ``form``: ``reciprocal`` is ``x * float32(1 / s)``, ``divide`` is ``x / float32(s)``,
    ``mul_div`` is ``(x * float32(numerator)) / float32(denominator)`` (recipes; `scale` still
    states the step).
    """
    return call(
        "quantize",
        [x, _const(scale, "float64"), _const(zero_point, "int32")],
        name=name,
        qmin=qmin,
        qmax=qmax,
        dtype=dtype,
        axis=axis,
        form=form,
        numerator=float(numerator),
        denominator=float(denominator),
    )


def dequantize(
    q: relax.Expr,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    name: str,
    qmin: int,
    qmax: int,
    axis: int = 1,
    form: str = "multiply",
) -> relax.Call:
    """Integer to float32: ``float32(q - z) * float32(s)``, form ``divide``: ``/ float32(s)``."""
    return call(
        "dequantize",
        [q, _const(scale, "float64"), _const(zero_point, "int32")],
        name=name,
        qmin=qmin,
        qmax=qmax,
        dtype="float32",
        axis=axis,
        form=form,
    )


def conv2d(
    x: relax.Expr,
    weight: relax.Expr | np.ndarray,
    bias: relax.Expr | ArrayLike,
    *,
    name: str,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    zero_point: int = 0,
    weight_bits: int = 8,
) -> relax.Call:
    """Integer convolution. `padding` is (top, left, bottom, right), filled with `zero_point`.

    The bias already holds ``- zero_point * sum_k w[o, k]``; the sum itself is over raw values.
    """
    w = weight if isinstance(weight, relax.Expr) else _const(weight, "int8")
    return call(
        "conv2d",
        [x, w, _i32(bias)],
        name=name,
        strides=list(strides),
        padding=list(padding),
        dilation=list(dilation),
        groups=groups,
        zero_point=zero_point,
        weight_bits=weight_bits,
    )


def dense(
    x: relax.Expr,
    weight: relax.Expr | np.ndarray,
    bias: relax.Expr | ArrayLike,
    *,
    name: str,
    zero_point: int = 0,
    weight_bits: int = 8,
) -> relax.Call:
    """Integer linear layer ``x @ weight.T + bias``; the bias holds the zero point's term."""
    w = weight if isinstance(weight, relax.Expr) else _const(weight, "int8")
    return call(
        "dense", [x, w, _i32(bias)], name=name, zero_point=zero_point, weight_bits=weight_bits
    )


def requantize(
    x: relax.Expr,
    multiplier: ArrayLike | relax.Expr,
    shift: ArrayLike | relax.Expr,
    *,
    name: str,
    lo: int,
    hi: int,
    dtype: str,
    zero_point: int = 0,
    in_zero_point: int = 0,
    rounding: str = "half_up",
    offset: ArrayLike | None = None,
) -> relax.Call:
    """``clamp(zero_point + offset + round((x - in_zero_point) * m / 2**e), lo, hi)``.

    `offset` [C] is the constant of dead channels (m = 0), in output steps. An int32 result with
    the full int32 range as (lo, hi) has no clamp.
    """
    args = [x, _i32(multiplier), _i32(shift)] + ([] if offset is None else [_i32(offset)])
    return call(
        "requantize",
        args,
        name=name,
        lo=lo,
        hi=hi,
        dtype=dtype,
        zero_point=zero_point,
        in_zero_point=in_zero_point,
        rounding=rounding,
    )


def add(
    lhs: relax.Expr,
    rhs: relax.Expr,
    lhs_multiplier: ArrayLike,
    lhs_shift: ArrayLike,
    rhs_multiplier: ArrayLike,
    rhs_shift: ArrayLike,
    *,
    name: str,
    form: str,
    lo: int,
    hi: int,
    dtype: str,
    lhs_zero_point: int = 0,
    rhs_zero_point: int = 0,
    zero_point: int = 0,
    rounding: str = "half_up",
) -> relax.Call:
    """Residual add, with ``l = lhs - lhs_zero_point`` and ``r = rhs - rhs_zero_point``.

    * ``fused`` (one shift e for both): ``clamp(z + ((l m1 + r m2 + 2^(e-1)) >> e), lo, hi)``.
    * ``two_sided``: ``clamp(z + round(l m1 / 2^e1) + round(r m2 / 2^e2), lo, hi)``.
    * ``accumulator``: as two_sided with m1 = 1, e1 = 0 and an int32 result: the skip is brought
      into the accumulator's units.
    """
    return call(
        "add",
        [lhs, rhs, _i32(lhs_multiplier), _i32(lhs_shift), _i32(rhs_multiplier), _i32(rhs_shift)],
        name=name,
        form=form,
        lo=lo,
        hi=hi,
        dtype=dtype,
        lhs_zero_point=lhs_zero_point,
        rhs_zero_point=rhs_zero_point,
        zero_point=zero_point,
        rounding=rounding,
    )


def max_pool2d(
    x: relax.Expr,
    *,
    name: str,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> relax.Call:
    """Maximum over each window; padding (top, left, bottom, right) never wins."""
    return call(
        "max_pool2d",
        [x],
        name=name,
        pool_size=list(pool_size),
        strides=list(strides),
        padding=list(padding),
        dilation=list(dilation),
        ceil_mode=ceil_mode,
        dtype=str(x.ty.dtype),
    )


def avg_pool2d(
    x: relax.Expr,
    *,
    name: str,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    rounding: str = "sum",
    zero_point: int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> relax.Call:
    """Sum of ``x - zero_point`` over each window in int32, or its rounded mean plus zero point.

    ``truncate`` divides toward zero (HAWQ); ``nearest`` is ``floor((sum + n // 2) / n)`` on
    non-negative sums and half away from zero on negative ones (NVIDIA). `n` counts padding only
    where `count_include_pad` says so; results of the last two have x's dtype.
    """
    dtype = "int32" if rounding == "sum" else str(x.ty.dtype)
    return call(
        "avg_pool2d",
        [x],
        name=name,
        pool_size=list(pool_size),
        strides=list(strides),
        padding=list(padding),
        dilation=[1, 1],
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        rounding=rounding,
        zero_point=zero_point,
        dtype=dtype,
    )


def concat(inputs: Sequence[relax.Expr], *, name: str, axis: int = 1) -> relax.Call:
    """Join integer tensors of one scale and zero point."""
    return call("concat", list(inputs), name=name, axis=axis, dtype=str(inputs[0].ty.dtype))
