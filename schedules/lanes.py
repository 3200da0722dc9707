"""TensorIR vectors: loads, stores, the rounding shifts of ``numerics.md``.

Vectors have `LANES` elements unless said otherwise; with ``lanes=1`` (GPU threads) they are
scalars.
"""

from __future__ import annotations

from typing import Any

from tvm.ir import Expr

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.layout import LANES

Buffer = Any


def ramp(base: Expr | int, lanes: int = LANES) -> Expr:
    """Consecutive indices ``base .. base + lanes - 1``."""
    return tirx.Ramp(base, 1, lanes)


def splat(value: int | float | Expr, dtype: str, lanes: int = LANES) -> Expr:
    """`value` in every lane."""
    scalar = tirx.const(value, dtype) if isinstance(value, (int, float)) else value
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def cast(vector: Any, dtype: str, lanes: int = LANES) -> Expr:
    """Each lane converted to `dtype`."""
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", vector)


def load(buffer: Buffer, index: list[Any], lanes: int = LANES) -> Expr:
    """`lanes` consecutive elements along the last axis, from `index` on."""
    return buffer[tuple([*index[:-1], ramp(index[-1], lanes)])]


def store(buffer: Buffer, index: list[Any], vector: Expr, lanes: int = LANES) -> None:
    """Write a vector along the last axis, from `index` on."""
    T.buffer_store(buffer, vector, [*index[:-1], ramp(index[-1], lanes)])


def clamp(vector: Expr, lo: int, hi: int, dtype: str, lanes: int = LANES) -> Expr:
    """Lanes limited to ``[lo, hi]``."""
    return tirx.min(tirx.max(vector, splat(lo, dtype, lanes)), splat(hi, dtype, lanes))


def round_shift(product: Expr, shift: Expr, rounding: str, dtype: str, lanes: int = LANES) -> Expr:
    """``product / 2**shift`` with the named rounding, as `tvm_q4.quant.round_shift` does it.

    `product` and `shift` are vectors of `dtype` (int32 or int64); a shift of 0 is the identity.
    """
    if rounding == "floor":
        return product >> shift
    one = splat(1, dtype, lanes)
    half = (one << shift) >> one
    if rounding == "half_up":
        return (product + half) >> shift
    if rounding == "half_away":
        sign = product >> splat(31 if dtype == "int32" else 63, dtype, lanes)
        magnitude = (product ^ sign) - sign
        return (((magnitude + half) >> shift) ^ sign) - sign
    # Half even: one less than half where the quotient is even, so that a tie does not reach up.
    unit = one - ((one << shift) & one)
    return (product + half - unit + ((product >> shift) & unit)) >> shift
