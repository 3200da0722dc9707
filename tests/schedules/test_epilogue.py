"""Epilogues against the reference executor: requantize, residual adds, offsets, logits."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.schedules.builders import (
    S4,
    S8,
    U4,
    U8,
    Batch,
    call_of,
    check,
    forced_rules,
    form_target,
    full_range,
    host,
    lower,
    module,
    ratios,
    weights,
)
from tvm_q4 import ops
from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import INT32_MAX, INT32_MIN, ROUNDINGS, IntRange

RNG = np.random.default_rng(31)
SHAPE = (1, 19, 5, 6)
C = SHAPE[1]
S16, S32 = IntRange(-32768, 32767), IntRange(INT32_MIN, INT32_MAX)
SMALL = forced_rules(tile_h=1, tile_w=1, blocks=1)
Make = Any


def _accumulator(b: relax.BlockBuilder, x: relax.Expr, name: str = "c") -> relax.Var:
    """Accumulators of both signs, up to half a million."""
    w = weights(RNG, 8, (C, int(x.ty.shape[1]), 1, 1))
    bias = RNG.integers(-30000, 30000, C)
    return b.emit(ops.conv2d(x, w, bias, name=name, strides=[1, 1], padding=[0] * 4))


def _small(dtype: Any = np.int32) -> np.ndarray:
    """Multipliers small enough for 32-bit products."""
    return RNG.integers(0, 1000, C).astype(dtype)


def _requantize(out: IntRange, wide: bool, **attrs: Any) -> Make:
    def emit(b, x):
        m, e = ratios(RNG, C, 38, 42) if wide else (_small(), RNG.integers(0, 12, C))
        how = {"lo": out.lo, "hi": out.hi, "dtype": out.dtype} | attrs
        return b.emit(ops.requantize(_accumulator(b, x), m, e, name="y", **how))

    return emit


REQUANTIZE = {
    f"{rounding}, {'wide' if wide else 'narrow'}": _requantize(S8, wide, rounding=rounding)
    for rounding in ROUNDINGS
    for wide in (True, False)
} | {
    "u4": _requantize(U4, True),
    "s4": _requantize(S4, True),
    "u8": _requantize(U8, True),
    "s16": _requantize(S16, True),
    "s16 of s8 values": _requantize(S8, True, dtype="int16"),
    "s32": _requantize(S32, True),
    "clamped s32": _requantize(IntRange(0, INT32_MAX), True),
    "zero points": _requantize(U8, True, zero_point=128, in_zero_point=-77),
    "narrow zero points": _requantize(U8, False, zero_point=128, in_zero_point=-77),
    "offset": _requantize(S8, True, offset=np.arange(-9, 10)),
    "narrow offset": _requantize(S8, False, offset=np.arange(-9, 10), zero_point=3),
}


def _add(form: str, rounding: str, wide: bool, out: IntRange = S8, skip: IntRange = S8) -> Make:
    def emit(b, x):
        m1, e1 = ratios(RNG, C, 39, 42) if wide else (_small(), RNG.integers(1, 12, C))
        m2, e2 = ratios(RNG, C, 30, 33) if wide else (_small() * 9, RNG.integers(1, 6, C))
        if form == "fused":
            e1 = e2 = np.maximum(e1, 1) if wide else RNG.integers(4, 12, C)
        if form == "accumulator":
            m1, e1 = [1], [0]
        how = {"lo": skip.lo, "hi": skip.hi, "dtype": skip.dtype}
        other = b.emit(ops.requantize(x, *ratios(RNG, 1, 30, 32), name="skip", **how))
        how = {"lo": out.lo, "hi": out.hi, "dtype": out.dtype, "rounding": rounding, "form": form}
        if form != "accumulator":
            how |= {"rhs_zero_point": 5, "lhs_zero_point": -300, "zero_point": 2}
        return b.emit(ops.add(_accumulator(b, x), other, m1, e1, m2, e2, name="sum", **how))

    return emit


ADDS = {
    f"{form}, {rounding}, {'wide' if wide else 'narrow'}": _add(form, rounding, wide, out)
    for form, out in zip(ops.RESIDUAL_FORMS, (S8, S32, S8), strict=True)
    for rounding in ROUNDINGS
    for wide in (True, False)
} | {
    "fused, s16 stream": _add("fused", "half_up", True, S16, S16),
    "two_sided, s32 stream": _add("two_sided", "half_up", True, S32, S16),
    "accumulator, relu": _add("accumulator", "half_away", False, IntRange(0, INT32_MAX), U4),
}  # fmt: skip


def _two_outputs(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    acc = _accumulator(b, x)
    m, e = ratios(RNG, C, 38, 41)
    wide = b.emit(ops.requantize(acc, m, e, name="y", lo=0, hi=255, dtype="uint8"))
    narrow = b.emit(ops.requantize(acc, m, e + 4, name="y.q2", lo=0, hi=15, dtype="uint8"))
    chained = b.emit(ops.requantize(wide, [7], [5], name="y.q3", lo=-8, hi=7, dtype="int8"))
    w = weights(RNG, 4, (16, C, 1, 1))
    parts = [
        b.emit(ops.conv2d(t, w, [0], name=f"c{i}", strides=[1, 1], padding=[i] * 4, weight_bits=4))
        for i, t in enumerate((wide, narrow, chained))
    ]
    sums = [
        b.emit(ops.requantize(p, [1], [8 + i], name=f"s{i}", lo=0, hi=255, dtype="uint8"))
        for i, p in enumerate(parts)
    ]
    same = [
        b.emit(
            ops.max_pool2d(
                s, name=f"p{i}", pool_size=[1 + 2 * i] * 2, strides=[1, 1], padding=[0] * 4
            )
        )
        for i, s in enumerate(sums)
    ]
    return b.emit(ops.concat(same, name="joined"))


def _leaving(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    """An accumulator that its own epilogue and another layer read."""
    acc = _accumulator(b, x)
    y = b.emit(ops.requantize(acc, *ratios(RNG, C, 38, 41), name="y", lo=0, hi=255, dtype="uint8"))
    other = _accumulator(b, y, "c2")
    how = {"form": "two_sided", "lo": -128, "hi": 127, "dtype": "int8"}
    m, e = ratios(RNG, C, 39, 42)
    return b.emit(ops.add(other, acc, m, e, m, e, name="sum", **how))


def _positional(channels: int) -> Make:
    def emit(b, x):
        m = RNG.integers(2**30, 2**31 - 1, (1, channels, *SHAPE[2:]))
        e = RNG.integers(38, 42, (1, channels, *SHAPE[2:]))
        how = {"lo": -128, "hi": 127, "dtype": "int8"}
        return b.emit(ops.requantize(_accumulator(b, x), m, e, name="y", **how))

    return emit


def _mixed_ranks(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    m = RNG.integers(2**30, 2**31 - 1, (1, 1, 1, SHAPE[3]))
    acc = _accumulator(b, x)
    y = b.emit(
        ops.requantize(acc, m, RNG.integers(38, 41, C), name="y", lo=0, hi=255, dtype="uint8")
    )
    m = RNG.integers(2**30, 2**31 - 1, (1, C, 1, 1))
    return b.emit(
        ops.requantize(y, m, [31], name="z", lo=0, hi=255, dtype="uint8", rounding="half_even")
    )


def _dead(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    """A channel of zero weights: multiplier 0, and a constant that may pass the output's range."""
    m, e = ratios(RNG, C, 38, 41)
    m[[0, 7]], e[[0, 7]] = 0, 1
    offset = np.zeros(C, np.int32)
    offset[[0, 7]] = 200, -300
    how = {"lo": -128, "hi": 127, "dtype": "int8", "offset": offset}
    return b.emit(ops.requantize(_accumulator(b, x), m, e, name="y", **how))


OTHERS = {
    "two outputs": _two_outputs, "accumulators that leave": _leaving, "by position": _positional(1),
    "by channel and position": _positional(C), "mixed ranks": _mixed_ranks, "dead channels": _dead,
}  # fmt: skip
CASES: dict[str, Make] = (
    {f"requantize {k}": v for k, v in REQUANTIZE.items()}
    | {f"add {k}": v for k, v in ADDS.items()}
    | OTHERS
)


@cache
def _batch() -> Batch:
    batch = Batch()
    for name, emit in CASES.items():
        batch.add(name, module(SHAPE, S8, emit), SMALL)
    return batch


@pytest.mark.parametrize("name", CASES)
def test_epilogues(name: str) -> None:
    bounds = [np.full(SHAPE, v, np.int8) for v in (-128, 127)]
    _batch().check(name, full_range(RNG, S8, SHAPE), *bounds)
    wide = [op.narrow for call in _batch().lowered[name].calls for _, op in call.layer.epilogue]
    if "narrow" in name:
        assert any(wide)
    elif "wide" in name:
        assert not wide[-1]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["maddubs", "generic"])
def test_epilogues_of_older_cpus(form: str) -> None:
    batch = Batch(form_target(form))
    for name, emit in CASES.items():
        batch.add(name, module(SHAPE, S8, emit), SMALL)
    for name in CASES:
        batch.check(name, full_range(RNG, S8, SHAPE))


def _shifted(multiplier: Any, shift: int, rounding: str) -> tvm.IRModule:
    how = {"lo": -128, "hi": 127, "dtype": "int8", "rounding": rounding}
    return module(
        (1, 5, 16, 16),
        S8,
        lambda b, x: b.emit(ops.requantize(x, multiplier, [shift], name="y", **how)),
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_shifts_of_any_size_are_exact(rounding: str) -> None:
    # 2^shift must fit the products' type: shifts of 31 and more need 64 bits for any product.
    batch, shifts = Batch(), [0, 1, 2, 29, 30, 31, 32, 62]
    for shift in shifts:
        batch.add(f"wide {shift}", _shifted([1, 2**31 - 1, 0, 3, 2**16], shift, rounding))
        lowered = batch.add(f"narrow {shift}", _shifted([3], shift, rounding))
        assert call_of(lowered, "elementwise").layer.ops[0].narrow == (shift <= 30)
    x = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
    for name in batch.modules:
        batch.check(name, np.broadcast_to(x, (1, 5, 16, 16)).copy())


def _extreme_products(form: str) -> tvm.IRModule:
    """Both sides at their largest, so that 64-bit products reach 2^62."""

    def emit(b, x):
        how = {"lo": INT32_MIN, "hi": INT32_MAX, "dtype": "int32"}
        big = b.emit(ops.requantize(x, [2**24], [0], name="big", **how))
        shift = 62 if form == "fused" else 32
        m = 2**30 if form == "fused" else 2**31 - 1
        out = {"lo": -(2**30), "hi": 2**30, "dtype": "int32", "form": form}
        return b.emit(ops.add(big, big, [m], [shift], [m], [shift], name="sum", **out))

    return module((1, 16, 1, 16), S8, emit)


@pytest.mark.parametrize("form", ["fused", "two_sided"])
def test_products_at_the_edge_of_int64(form: str) -> None:
    x = np.zeros((1, 16, 1, 16), np.int8)
    x[:, :, 0, :8], x[:, :, 0, 8:] = np.arange(-128, -120), np.arange(120, 128)
    check(_extreme_products(form), x)


def _dense(batch: int, bits: int, form: str, scale: Any, zero: int = 0) -> tvm.IRModule:
    w = weights(RNG, bits, (10, 37))

    def emit(b, x):
        acc = b.emit(ops.dense(x, w, RNG.integers(-5000, 5000, 10), name="fc", weight_bits=bits))
        how = {"name": "logits", "qmin": INT32_MIN, "qmax": INT32_MAX, "form": form}
        return b.emit(ops.dequantize(acc, scale, zero, **how))

    return module((batch, 37), S8, emit)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("form", ops.DEQUANTIZE_FORMS)
def test_logits_are_the_same_floats(form: str, batch: int, bits: int) -> None:
    scale = RNG.uniform(1e-4, 3, 10)
    check(_dense(batch, bits, form, scale, zero=0), full_range(RNG, S8, (batch, 37)))


def test_logits_of_one_scale_and_zero_point() -> None:
    lowered = check(_dense(7, 8, "divide", 0.3, zero=-11), full_range(RNG, S8, (7, 37)))
    (call,) = lowered.calls[1:]
    assert call.layer.outputs[0][1].physical_shape == (7, 10)


@pytest.mark.parametrize("batch", [1, 2, 5, 16])
@pytest.mark.parametrize("bits", [4, 8])
def test_integer_dense(batch: int, bits: int) -> None:
    w = weights(RNG, bits, (33, 130))

    def emit(b, x):
        return b.emit(ops.dense(x, w, np.arange(33), name="fc", weight_bits=bits, zero_point=3))

    inputs = [np.full((batch, 130), v, np.uint8) for v in (0, 255)]
    check(module((batch, 130), U8, emit), full_range(RNG, U8, (batch, 130)), *inputs)


def test_one_value_an_image_cannot_differ() -> None:
    def emit(b, x):
        m = np.ones((2, 1, 1, 1), np.int32)
        return b.emit(ops.requantize(x, m, [0], name="y", lo=0, hi=255, dtype="uint8"))

    with pytest.raises(UnsupportedError, match=r"multiplier of y .* differs by image"):
        lower(module((2, 16, 3, 3), U8, emit), host())


@pytest.mark.parametrize(
    ("scale", "zero", "axis"), [(1.0, [0, 1], 1), ([1.0, 2.0], 0, 2), ([1.0, 2.0], [0, 0], 1)]
)
def test_zero_points_by_channel_are_errors(scale: Any, zero: Any, axis: int) -> None:
    def emit(b, x):
        how = {"name": "y", "qmin": 0, "qmax": 255, "axis": axis}
        return b.emit(ops.dequantize(x, scale, zero, **how))

    with pytest.raises(UnsupportedError, match=r"q4.dequantize y has \d zero point"):
        lower(module((1, 2, 2, 3), U8, emit), host())


RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(RANDOM, max_examples=12)
@given(data=st.data())
def test_random_ratios(data: st.DataObject) -> None:
    shift = data.draw(st.integers(0, 62))
    most = 2**31 - 1 if shift > 8 else 2**15
    m = data.draw(st.lists(st.integers(0, most), min_size=C, max_size=C))
    rounding = data.draw(st.sampled_from(ROUNDINGS))
    out = data.draw(st.sampled_from([U4, S8, S16]))
    zero = data.draw(st.integers(out.lo, out.hi))

    def emit(b, x):
        how = {
            "lo": out.lo,
            "hi": out.hi,
            "dtype": out.dtype,
            "zero_point": zero,
            "rounding": rounding,
        }
        return b.emit(ops.requantize(_accumulator(b, x), m, [shift], name="y", **how))

    check(module(SHAPE, S8, emit), full_range(RNG, S8, SHAPE), rules=SMALL)
