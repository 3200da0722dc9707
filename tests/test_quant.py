"""quant.py against exact rational arithmetic in Python integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tvm_q4.errors import NumericsError
from tvm_q4.quant import (
    INT32_MAX,
    INT32_MIN,
    ROUNDINGS,
    IntRange,
    dyadic,
    dyadic_array,
    fused_ratios,
    requantize,
    round_shift,
)

HALF = Fraction(1, 2)
RATIOS = st.floats(0, 2.0**31, exclude_max=True, allow_subnormal=True)
INT32 = st.integers(INT32_MIN, INT32_MAX)


def exact_round(value: Fraction, rounding: str) -> int:
    """Rounding of an exact rational, from each name's definition."""
    if rounding == "floor":
        return math.floor(value)
    if rounding == "half_up":
        return math.floor(value + HALF)
    if rounding == "half_away":
        return int(math.copysign(1, value)) * math.floor(abs(value) + HALF)
    return round(value)


@settings(max_examples=400, deadline=None)
@given(st.integers(-(2**62), 2**62), st.integers(0, 62), st.sampled_from(ROUNDINGS))
@example(-1, 1, "half_away")
@example(3, 1, "half_even")
@example(-3, 1, "half_even")
@example(-(2**62), 62, "half_up")
@example(-5, 0, "half_away")
def test_round_shift_is_exact(product: int, shift: int, rounding: str) -> None:
    got = round_shift(np.array([product], np.int64), shift, rounding)
    assert int(got[0]) == exact_round(Fraction(product, 2**shift), rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_round_shift_ties_at_every_shift(rounding: str) -> None:
    """Every odd multiple of half a step near 0, at each shift, both signs."""
    for shift in range(1, 63):
        halves = [k for k in range(-9, 10) if abs(k << (shift - 1)) < 2**62]
        product = np.array([k << (shift - 1) for k in halves], np.int64)
        expected = [exact_round(Fraction(k, 2), rounding) for k in halves]
        assert round_shift(product, shift, rounding).tolist() == expected


def test_round_shift_takes_a_shift_for_each_channel() -> None:
    product = np.array([[5, 5, 5], [-5, -5, -5]], np.int64)
    got = round_shift(product, np.array([0, 1, 2], np.int32)[None, :], "half_up")
    assert got.tolist() == [[5, 3, 1], [-5, -2, -1]]


def test_unknown_rounding_is_named() -> None:
    with pytest.raises(NumericsError, match="'up' is unknown"):
        round_shift(np.zeros(1, np.int64), 1, "up")


@settings(max_examples=400, deadline=None)
@given(RATIOS)
@example(2.0**-32)
@example(math.nextafter(2.0**-32, 0))
@example(0.0)
@example(1.0)
@example(math.nextafter(1.0, 0))
@example(2.0**31 - 1.0)
def test_dyadic_is_the_nearest_of_its_form(ratio: float) -> None:
    try:
        m, e = dyadic(ratio)
    except NumericsError:
        assert ratio >= 2.0**31 - 0.5
        return
    if ratio < 2.0**-32:
        assert (m, e) == (0, 1)
        return
    assert 2**30 <= m < 2**31 and 0 <= e <= 62
    assert abs(Fraction(m, 2**e) - Fraction(ratio)) <= Fraction(1, 2 ** (e + 1))
    assert Fraction(m - 1, 2**e) < Fraction(ratio) < Fraction(m + 1, 2**e)


def test_dyadic_rounds_half_up_and_renormalises() -> None:
    assert dyadic(1.0) == (2**30, 30)
    assert dyadic(0.5) == (2**30, 31)
    assert dyadic((2**30 + 0.5) / 2**31) == (2**30 + 1, 31)
    assert dyadic(math.nextafter(1.0, 0)) == (2**30, 30)
    assert dyadic(2.0**-32) == (2**30, 62)


@pytest.mark.parametrize("ratio", [-1e-9, math.nan, math.inf, -math.inf, 2.0**31, 1e300])
def test_bad_ratio_names_layer_and_channel(ratio: float) -> None:
    with pytest.raises(NumericsError, match="conv1 channel 1"):
        dyadic_array([0.5, ratio], "conv1")


@settings(max_examples=200, deadline=None)
@given(INT32, st.floats(0, 2.0**-32, exclude_max=True))
def test_tiny_ratio_is_exactly_zero(value: int, ratio: float) -> None:
    m, e = dyadic_array([ratio])
    assert requantize(np.array([value]), m, e).tolist() == [0]
    assert exact_round(value * Fraction(ratio), "half_up") == 0


@settings(max_examples=400, deadline=None)
@given(INT32, RATIOS, st.sampled_from(ROUNDINGS), st.integers(-128, 127))
def test_requantize_is_exact(value: int, ratio: float, rounding: str, z: int) -> None:
    try:
        m, e = dyadic_array([ratio])
    except NumericsError:
        return
    got = requantize(np.array([value]), m, e, zero_point=z, lo=-128, hi=127, rounding=rounding)
    rounded = exact_round(Fraction(value * int(m[0]), 2 ** int(e[0])), rounding)
    assert got.tolist() == [min(max(z + rounded, -128), 127)]


@settings(max_examples=400, deadline=None)
@given(RATIOS, RATIOS)
@example(1e-12, 1.0)
@example(1.0, 0.0)
@example(0.0, 0.0)
@example(2.0**-40, 3.0)
@example(0.25, math.nextafter(0.5, 0))
def test_fused_ratios_follow_the_definition(r1: float, r2: float) -> None:
    try:
        e1, e2 = dyadic(r1)[1], dyadic(r2)[1]
        m1, m2, shift = (int(v[0]) for v in fused_ratios(r1, r2))
    except NumericsError:
        assert max(r1, r2) >= 2.0**31 - 0.5
        return
    tiny1, tiny2 = r1 < 2.0**-32, r2 < 2.0**-32
    if tiny1 and tiny2:
        assert (m1, m2) == (0, 0)
        return
    assert shift == (e2 if tiny1 else e1 if tiny2 else min(e1, e2))
    for ratio, m, tiny in ((r1, m1, tiny1), (r2, m2, tiny2)):
        assert m == (0 if tiny else math.floor(ratio * 2.0**shift + 0.5))
        assert 0 <= m < 2**31


def test_fused_ratios_broadcast_over_channels() -> None:
    m1, m2, e = fused_ratios([0.5, 0.25, 1e-20], 0.125)
    assert m1.tolist() == [2**30, 2**30, 0]
    assert m2.tolist() == [2**28, 2**29, 2**30]
    assert e.tolist() == [31, 32, 33]


@pytest.mark.parametrize(
    ("lo", "hi", "bits", "dtype", "tag"),
    [
        (0, 15, 4, "uint8", "u4"),
        (-8, 7, 4, "int8", "s4"),
        (-7, 7, 4, "int8", "s4"),
        (0, 16, 8, "uint8", "u8"),
        (0, 255, 8, "uint8", "u8"),
        (-1, 8, 8, "int8", "s8"),
        (-128, 127, 8, "int8", "s8"),
        (-129, 0, 16, "int16", "s16"),
        (0, 65535, 16, "uint16", "u16"),
        (-32769, 0, 32, "int32", "s32"),
        (0, INT32_MAX, 32, "int32", "s32"),
    ],
)
def test_int_range(lo: int, hi: int, bits: int, dtype: str, tag: str) -> None:
    found = IntRange(lo, hi)
    assert (found.bits, found.dtype, found.tag) == (bits, dtype, tag)
    assert np.iinfo(found.dtype).min <= lo and hi <= np.iinfo(found.dtype).max
    assert found.max_abs == max(abs(lo), abs(hi))
