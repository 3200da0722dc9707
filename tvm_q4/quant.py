"""Dyadic numbers and integer ranges: the arithmetic of ``numerics.md`` without tensor libraries.

Everything here is exact. `dyadic` and `fused_ratios` run at compile time in float64; `requantize`
and `round_shift` are the NumPy definition that the reference executor uses and kernels must equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvm_q4.errors import NumericsError

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
ROUNDINGS = ("half_up", "half_away", "half_even", "floor")
_TINY = 2.0**-32


@dataclass(frozen=True)
class IntRange:
    """Inclusive range of an integer tensor's values, which also gives its bits and signedness."""

    lo: int
    hi: int

    @property
    def signed(self) -> bool:
        """Whether negative values occur."""
        return self.lo < 0

    @property
    def bits(self) -> int:
        """Smallest of 4, 8, 16, 32 bits that holds the range (unsigned where `lo` >= 0)."""
        for bits in (4, 8, 16):
            if self.signed and self.lo >= -(1 << (bits - 1)) and self.hi < 1 << (bits - 1):
                return bits
            if not self.signed and self.hi < 1 << bits:
                return bits
        return 32

    @property
    def dtype(self) -> str:
        """NumPy dtype that stores one element (4-bit values live in 8-bit containers)."""
        if self.bits == 32:
            return "int32"
        return f"{'int' if self.signed else 'uint'}{max(self.bits, 8)}"

    @property
    def tag(self) -> str:
        """Short form as printed in signatures: ``u4``, ``s8``, ``s32``."""
        return f"{'s' if self.signed or self.bits == 32 else 'u'}{self.bits}"

    @property
    def max_abs(self) -> int:
        """Largest absolute value."""
        return max(abs(self.lo), abs(self.hi))


def dyadic(ratio: float, where: str = "") -> tuple[int, int]:
    """Turn a positive real ratio into ``(m, e)`` with ``ratio ~ m / 2**e`` (numerics.md, dyadic).

    Parameters
    ----------
    ratio : float
        Ratio in float64, ``0 <= ratio < 2**31``.
    where : str
        Layer and channel for the error message.

    Returns
    -------
    tuple[int, int]
        ``m`` in ``[2**30, 2**31)`` and ``e`` in ``[0, 62]``, or ``(0, 1)`` for ratios below 2**-32.

    Raises
    ------
    NumericsError
        If the ratio is negative, not finite, or 2**31 or more.
    """
    if not math.isfinite(ratio) or ratio < 0 or ratio >= 2.0**31:
        msg = (
            f"requantize ratio {ratio!r} at {where or 'unnamed layer'} is not in [0, 2^31); "
            "check the scales"
        )
        raise NumericsError(msg)
    if ratio < _TINY:
        return 0, 1
    f, x = math.frexp(ratio)
    m = math.floor(f * 2**31 + 0.5)
    e = 31 - x
    if m == 2**31:
        m, e = 2**30, e - 1
    if e < 0:
        msg = (
            f"requantize ratio {ratio!r} at {where or 'unnamed layer'} rounds up to 2^31; "
            "check the scales"
        )
        raise NumericsError(msg)
    return m, e


def dyadic_array(ratios: ArrayLike, where: str = "") -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`dyadic` of each element of a 1-D array; returns int32 multipliers and int32 shifts [C]."""
    pairs = [dyadic(float(r), f"{where} channel {i}") for i, r in enumerate(np.ravel(ratios))]
    m = np.array([p[0] for p in pairs], dtype=np.int32)
    e = np.array([p[1] for p in pairs], dtype=np.int32)
    return m, e


def fused_ratios(
    lhs: ArrayLike, rhs: ArrayLike, where: str = ""
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Multipliers of a residual add with one rounding (numerics.md, form ``fused``).

    Parameters
    ----------
    lhs, rhs : array_like of float64, [C] or scalar
        Ratios of both operands' scales to the output scale.
    where : str
        Layer name for error messages.

    Returns
    -------
    tuple of int64 [C], int64 [C], int32 [C]
        ``m1``, ``m2`` and the common shift ``e``. A shift below 1, or a multiplier beyond int32,
        cannot be used in the fused form; the caller checks and falls back to ``two_sided``.
    """
    r1, r2 = np.broadcast_arrays(*(np.atleast_1d(np.asarray(r, np.float64)) for r in (lhs, rhs)))
    m1, m2, shift = [], [], []
    for i, (a, b) in enumerate(zip(r1.tolist(), r2.tolist(), strict=True)):
        e1 = dyadic(a, f"{where} channel {i}")[1]
        e2 = dyadic(b, f"{where} channel {i}")[1]
        tiny_a, tiny_b = a < _TINY, b < _TINY
        e = min(e for e, tiny in ((e1, tiny_a), (e2, tiny_b)) if not tiny or (tiny_a and tiny_b))
        m1.append(0 if tiny_a else math.floor(a * 2.0**e + 0.5))
        m2.append(0 if tiny_b else math.floor(b * 2.0**e + 0.5))
        shift.append(e)
    return np.array(m1, np.int64), np.array(m2, np.int64), np.array(shift, np.int32)


def round_shift(
    product: NDArray[np.int64], shift: ArrayLike, rounding: str = "half_up"
) -> NDArray[np.int64]:
    """Divide int64 products by ``2**shift`` with the named rounding; ``shift`` 0 is the identity.

    Parameters
    ----------
    product : int64 ndarray
    shift : int array, broadcastable to `product`, 0..62
    rounding : {"half_up", "half_away", "half_even", "floor"}
    """
    if rounding not in ROUNDINGS:
        msg = f"rounding {rounding!r} is unknown; use one of {', '.join(ROUNDINGS)}"
        raise NumericsError(msg)
    e = np.asarray(shift, dtype=np.int64)
    half = (np.int64(1) << e) >> np.int64(1)
    if rounding == "floor":
        return product >> e
    if rounding == "half_up":
        return (product + half) >> e
    if rounding == "half_away":
        return np.sign(product) * ((np.abs(product) + half) >> e)
    up = (product + half) >> e
    tie = (e > 0) & ((product & ((np.int64(1) << e) - 1)) == half)
    return up - (tie & ((up & 1) == 1))


def requantize(
    value: NDArray[np.integer],
    multiplier: NDArray[np.integer],
    shift: NDArray[np.integer],
    *,
    zero_point: int = 0,
    lo: int = INT32_MIN,
    hi: int = INT32_MAX,
    rounding: str = "half_up",
) -> NDArray[np.int64]:
    """``clamp(zero_point + round(value * multiplier / 2**shift), lo, hi)`` in int64.

    `multiplier` and `shift` must already broadcast against `value` (reshape [C] to [1, C, 1, 1]).
    """
    product = value.astype(np.int64) * np.asarray(multiplier, np.int64)
    return np.clip(round_shift(product, shift, rounding) + zero_point, lo, hi)
