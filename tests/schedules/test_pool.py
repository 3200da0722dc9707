"""Pooling kernels against the reference executor."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.schedules.builders import (
    S8,
    U4,
    U8,
    Batch,
    call_of,
    check,
    form_target,
    full_range,
    module,
    ratios,
)
from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.reference_ops.windows import window_counts

RNG = np.random.default_rng(12)
SHAPE = (2, 21, 9, 8)
S16 = IntRange(-32768, 32767)
WINDOWS: dict[str, dict[str, Any]] = {
    "2x2": {"pool_size": [2, 2], "strides": [2, 2]},
    "3x3 padded": {"pool_size": [3, 3], "strides": [2, 2], "padding": [1, 1, 1, 1]},
    "asymmetric": {"pool_size": [3, 2], "strides": [1, 3], "padding": [0, 1, 2, 0]},
    "ceil": {"pool_size": [3, 3], "strides": [2, 3], "ceil_mode": True},
    "ceil padded": {
        "pool_size": [3, 3], "strides": [2, 2], "padding": [1, 1, 1, 1], "ceil_mode": True,
    },
    "global": {"pool_size": [9, 8], "strides": [1, 1]},
}  # fmt: skip
MAX_DATA = {"u8": U8, "s8": S8, "u4": U4, "s16": S16}


def _attrs(window: str) -> dict[str, Any]:
    return {"padding": [0] * 4} | WINDOWS[window]


def _max(window: str, data: IntRange) -> tvm.IRModule:
    attrs = _attrs(window)
    return module(SHAPE, data, lambda b, x: b.emit(ops.max_pool2d(x, name="p", **attrs)))


MAXIMA = {f"{w}, {d}": (w, MAX_DATA[d]) for w in WINDOWS for d in ("u8", "s8")} | {
    f"asymmetric, {d}": ("asymmetric", MAX_DATA[d]) for d in ("u4", "s16")
}


@cache
def _maxima() -> Batch:
    batch = Batch()
    for name, (window, data) in MAXIMA.items():
        batch.add(name, _max(window, data))
    return batch


@pytest.mark.parametrize("name", MAXIMA)
def test_maxima(name: str) -> None:
    data = MAXIMA[name][1]
    lowest = np.full(SHAPE, data.lo, data.dtype)
    _maxima().check(name, full_range(RNG, data, SHAPE), lowest)


def test_dilated_maximum_with_epilogue_and_halo() -> None:
    def emit(b, x):
        how = {"pool_size": [3, 2], "strides": [1, 2], "padding": [2, 0, 1, 1], "dilation": [2, 3]}
        y = b.emit(ops.max_pool2d(x, name="p", **how))
        m, e = ratios(RNG, 21, 30, 34)
        z = b.emit(ops.requantize(y, m, e, name="z", lo=0, hi=15, dtype="uint8", zero_point=4))
        w = np.ones((16, 21, 3, 3), np.int8)
        conv = ops.conv2d(z, w, [0], name="c", strides=[1, 1], padding=[1, 2, 1, 2], zero_point=4)
        return b.emit(conv)

    lowered = check(module(SHAPE, S8, emit), full_range(RNG, S8, SHAPE))
    tensor = call_of(lowered, "max_pool2d").layer.outputs[0][1]
    assert (tensor.layout.halo, tensor.fill) == ((1, 2, 1, 2), 4)


AVERAGES = {
    f"{w}, {rounding}{', inside only' if inside else ''}": (w, rounding, inside)
    for w in WINDOWS
    for rounding in ops.AVG_ROUNDINGS
    for inside in ((False, True) if w not in ("2x2", "global") else (False,))
}


def _average(name: str, data: IntRange = S8, zero: int = -3) -> tvm.IRModule:
    window, rounding, inside = AVERAGES[name]
    attrs = _attrs(window) | {"rounding": rounding, "count_include_pad": not inside}
    return module(
        SHAPE, data, lambda b, x: b.emit(ops.avg_pool2d(x, name="p", zero_point=zero, **attrs))
    )


@cache
def _averages() -> Batch:
    batch = Batch()
    for name in AVERAGES:
        batch.add(name, _average(name))
    return batch


@pytest.mark.parametrize("name", AVERAGES)
def test_averages(name: str) -> None:
    bounds = [np.full(SHAPE, v, np.int8) for v in (-128, 127, -3)]
    _averages().check(name, full_range(RNG, S8, SHAPE), *bounds)


@pytest.mark.parametrize("data", [U4, U8, S16], ids=["u4", "u8", "s16"])
def test_average_of_other_types(data: IntRange) -> None:
    batch = Batch()
    for name in ("3x3 padded, sum", "ceil, nearest", "ceil padded, truncate, inside only"):
        batch.add(name, _average(name, data, zero=2))
    for name in batch.modules:
        batch.check(name, full_range(RNG, data, SHAPE))


@pytest.mark.parametrize("inside", [False, True])
def test_one_ratio_for_each_number_of_positions(inside: bool) -> None:
    attrs = _attrs("ceil padded") | {"count_include_pad": not inside}
    geometry = (attrs["pool_size"], attrs["strides"], attrs["padding"], [1, 1])
    n = window_counts(SHAPE[2:], *geometry, (5, 5), include_pad=not inside)
    assert len(np.unique(n)) > 1
    m = np.floor(2.0**36 / (n * 37.0) + 0.5).astype(np.int32)[None, None]

    def emit(b, x):
        total = b.emit(ops.avg_pool2d(x, name="p", zero_point=5, **attrs))
        y = ops.requantize(total, m, [30], name="y", lo=-128, hi=127, dtype="int8", zero_point=5)
        return b.emit(y)

    lowered = check(module(SHAPE, S8, emit), full_range(RNG, S8, SHAPE))
    assert call_of(lowered, "avg_pool2d").layer.shape[2:] == (5, 5)
    assert "pos-multiplier" in call_of(lowered, "avg_pool2d").signature


@st.composite
def pools(draw: st.DrawFn) -> dict[str, Any]:
    """Any window whose every position sees some of the input."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pads = [draw(st.integers(0, kernel[i % 2] // 2)) for i in range(4)]
    strides = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return {
        "pool_size": kernel, "strides": strides, "padding": pads, "ceil_mode": draw(st.booleans()),
    }  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    attrs=pools(),
    size=st.tuples(st.integers(4, 11), st.integers(4, 11)),
    channels=st.integers(1, 40),
    rounding=st.sampled_from((*ops.AVG_ROUNDINGS, "maximum")),
    inside=st.booleans(),
)
def test_random_pools(
    attrs: dict[str, Any], size: tuple[int, int], channels: int, rounding: str, inside: bool
) -> None:
    out = ops.pool_output(
        size, attrs["pool_size"], attrs["strides"], attrs["padding"], [1, 1], attrs["ceil_mode"]
    )
    geometry = (attrs["pool_size"], attrs["strides"], attrs["padding"], [1, 1])
    assume(window_counts(size, *geometry, out, include_pad=False).all())

    def emit(b, x):
        if rounding == "maximum":
            return b.emit(ops.max_pool2d(x, name="p", **attrs))
        how = {"rounding": rounding, "count_include_pad": not inside, "zero_point": 1}
        return b.emit(ops.avg_pool2d(x, name="p", **attrs, **how))

    shape = (1, channels, *size)
    check(module(shape, S8, emit), full_range(RNG, S8, shape))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["maddubs", "generic"])
def test_pools_of_older_cpus(form: str) -> None:
    batch = Batch(form_target(form))
    for name in AVERAGES:
        batch.add(f"average {name}", _average(name))
    for name, (window, data) in MAXIMA.items():
        batch.add(name, _max(window, data))
    for name in batch.modules:
        data = MAXIMA[name][1] if name in MAXIMA else S8
        batch.check(name, full_range(RNG, data, SHAPE))
