"""Requantization from high words: when it is used, that its constants are exact, and kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.schedules.builders import S8, U8, Batch, form_target, full_range, module, weights
from tvm_q4 import ops
from tvm_q4.quant import INT32_MAX
from tvm_q4.schedules.high_word import prepare

RNG = np.random.default_rng(47)
SHAPE = (1, 19, 5, 6)
C = SHAPE[1]


def _by_high_words(values: list[int], ready: Any, channel: int) -> int:
    """The kernel's arithmetic in Python integers, each step checked to fit its type."""
    multipliers, before, shift = ready
    total, e = 0, int(shift[channel])
    for value, factor, bits in zip(values, multipliers, before, strict=True):
        doubled = value << bits
        assert abs(doubled) <= INT32_MAX
        total += doubled * int(factor[channel])
    assert abs(total) < 1 << 63
    high = (total >> 32) + (1 << (e - 33))
    assert abs(high) <= INT32_MAX
    return high >> (e - 32)


@pytest.mark.parametrize("least", [1, 20, 28, 31, 32, 33, 34, 40])
@pytest.mark.parametrize("sides", [1, 2])
def test_constants_give_the_same_result(least: int, sides: int) -> None:
    peaks = [1 << 21, 255][:sides]
    shift = RNG.integers(least, least + 4, C).astype(np.int32)
    factors = [RNG.integers(1, top, C).astype(np.int32) for top in (1 << 22, 1 << 31)[:sides]]
    ready = prepare(list(zip(factors, peaks, strict=True)), shift)
    if ready is None:
        assert least < 28, "a shift close to 33 can be raised"
        return
    assert int(ready[2].min()) >= 33
    for channel in range(C):
        m, e = [int(f[channel]) for f in factors], int(shift[channel])
        tie = (1 << (e - 1)) // m[0]
        for first in (
            -peaks[0],
            peaks[0],
            0,
            1,
            -1,
            tie,
            -tie,
            *map(int, RNG.integers(-9999, 9999, 30)),
        ):
            values = [max(-peaks[0], min(peaks[0], first)), -peaks[-1]][:sides]
            expected = (sum(v * f for v, f in zip(values, m, strict=True)) + (1 << (e - 1))) >> e
            assert _by_high_words(values, ready, channel) == expected


def test_what_may_overflow_is_left_alone() -> None:
    largest = np.array([INT32_MAX], np.int32)
    assert prepare([(largest, INT32_MAX)], np.array([62], np.int32)) is not None
    assert prepare([(largest, INT32_MAX)] * 3, np.array([62], np.int32)) is None
    assert prepare([(largest, INT32_MAX)], np.array([32], np.int32)) is None
    assert prepare([(largest, INT32_MAX >> 1)], np.array([32], np.int32)) is not None
    assert prepare([(largest, 1)], np.array([63], np.int32)) is None


def test_dead_channels_do_not_raise_the_others() -> None:
    ready = prepare([(np.array([0, 1 << 30], np.int32), 1 << 20)], np.array([1, 40], np.int32))
    assert ready is not None
    assert [a.tolist() for a in ready[0]] == [[0, 1 << 30]]
    assert (ready[1], ready[2].tolist()) == ([0], [33, 40])


def _accumulator(b: Any, x: Any) -> Any:
    w = weights(RNG, 8, (C, C, 1, 1))
    w[3] = 0
    bias = RNG.integers(-30000, 30000, C)
    bias[3] = 0
    return b.emit(ops.conv2d(x, w, bias, name="c", strides=[1, 1], padding=[0] * 4))


def _requantize(shifts: tuple[int, int], bits: int) -> Any:
    def emit(b: Any, x: Any) -> Any:
        m = RNG.integers(1 << (bits - 1), 1 << bits, C, dtype=np.int64)
        e = RNG.integers(*shifts, C)
        m[3], e[3] = 0, 1
        how = {"lo": 0, "hi": 255, "dtype": "uint8", "zero_point": 3}
        return b.emit(ops.requantize(_accumulator(b, x), m, e, name="y", **how))

    return emit


def _fused(e: int, skip: Any) -> Any:
    def emit(b: Any, x: Any) -> Any:
        other = b.emit(
            ops.requantize(
                x, [1 << 30], [30], name="skip", lo=skip.lo, hi=skip.hi, dtype=skip.dtype
            )
        )
        m1, m2 = (
            RNG.integers(1 << 20, 1 << 22, C),
            RNG.integers(1 << 30, 1 << 31, C, dtype=np.int64),
        )
        m1[3] = 0
        how = {"lo": -128, "hi": 127, "dtype": "int8", "form": "fused", "rhs_zero_point": -7}
        return b.emit(ops.add(_accumulator(b, x), other, m1, [e], m2, [e], name="sum", **how))

    return emit


CASES = {
    "shifts of convolutions": (_requantize((38, 43), 31), "high0"),
    "shifts at the limit": (_requantize((33, 35), 31), "high0"),
    "shifts below": (_requantize((29, 33), 31), "high4"),
    "small multipliers": (_requantize((22, 26), 18), "high0"),
    "residual": (_fused(31, S8), "high0,2"),
    "residual of unsigned": (_fused(30, U8), "high0,3"),
}


@cache
def _batch(form: str) -> Batch:
    batch = Batch(form_target(form))
    for name, (emit, _) in CASES.items():
        batch.add(name, module(SHAPE, S8, emit))
    return batch


@pytest.mark.parametrize("form", ["vnni512", "madd", "generic"])
@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_reference(name: str, form: str) -> None:
    batch = _batch(form)
    bounds = [np.full(SHAPE, v, np.int8) for v in (-128, 127)]
    batch.check(name, full_range(RNG, S8, SHAPE), *bounds)
    signatures = [call.signature for call in batch.lowered[name].calls]
    assert any(f" {CASES[name][1]} " in text for text in signatures)
