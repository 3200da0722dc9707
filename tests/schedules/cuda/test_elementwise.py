"""Requantize, residual adds and dequantize without an anchor on CUDA, bit-exact in the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from tests.cuda_emulator import EmulationError
from tests.schedules.builders import S4, S8, U4, U8, full_range, module, ratios
from tests.schedules.cuda.builders import Reader, check, lower
from tests.schedules.cuda.sass import needs_sass, sass
from tvm_q4 import ops
from tvm_q4.quant import INT32_MAX, INT32_MIN, ROUNDINGS, IntRange
from tvm_q4.schedules.cuda.rules import RULES

RNG = np.random.default_rng(47)
C = 19
SHAPE = (2, C, 3, 5)
S16, S32, S20 = (
    IntRange(-32768, 32767), IntRange(INT32_MIN, INT32_MAX), IntRange(-500000, 500000),
)  # fmt: skip
TYPES = {"u4": U4, "s4": S4, "u8": U8, "s8": S8, "s16": S16, "s32": S32, "s20": S20}
KINDS = ("elementwise",)


def _run(mod: tvm.IRModule, values: IntRange, arch: int = 80, **how: Any) -> None:
    check(mod, full_range(RNG, values, SHAPE), arch=arch, kinds=KINDS, **how)


def _small() -> np.ndarray:
    """Multipliers small enough for 32-bit products."""
    return RNG.integers(0, 1000, C).astype(np.int32)


def _requantize(values: IntRange, out: IntRange, wide: bool = True, **attrs: Any) -> tvm.IRModule:
    def emit(b, x):
        shift = 31 + max(values.bits - 8, 0) * 5 // 12
        m, e = ratios(RNG, C, shift, shift + 4) if wide else (_small(), RNG.integers(0, 12, C))
        how = {"lo": out.lo, "hi": out.hi, "dtype": out.dtype} | attrs
        return b.emit(ops.requantize(x, m, e, name="y", **how))

    return module(SHAPE, values, emit)


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("s20", "u4"), ("s20", "s8"), ("s20", "s32"), ("u4", "s4"), ("s4", "s16"), ("s8", "u8"),
        ("u8", "s20"), ("s16", "u4"), ("s32", "s16"),
    ],
)  # fmt: skip
def test_requantize(source: str, out: str) -> None:
    _run(_requantize(TYPES[source], TYPES[out]), TYPES[source], arch=75)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_roundings_and_zero_points(rounding: str, wide: bool) -> None:
    how = {"rounding": rounding, "zero_point": 100, "in_zero_point": -77}
    _run(_requantize(S20, U8, wide, **how), S20)


@pytest.mark.parametrize("wide", [True, False])
def test_offsets_and_clamps_inside_the_type(wide: bool) -> None:
    offset = np.arange(-9, 10)
    _run(_requantize(S20, IntRange(-100, 90), wide, offset=offset, zero_point=3), S20)


def _add(
    form: str, rounding: str, wide: bool, out: IntRange = S8, skip: IntRange = S8
) -> tvm.IRModule:
    """Accumulators and a skip that another kernel wrote."""

    def emit(b, x):
        m1, e1 = ratios(RNG, C, 41, 44) if wide else (_small(), RNG.integers(1, 12, C))
        m2, e2 = ratios(RNG, C, 30, 33) if wide else (_small() * 9, RNG.integers(1, 6, C))
        if form == "fused":
            e1 = e2 = e1 if wide else RNG.integers(4, 12, C)
        if form == "accumulator":
            m1, e1 = [1], [0]
        how = {"lo": skip.lo, "hi": skip.hi, "dtype": skip.dtype}
        other = b.emit(ops.requantize(x, *ratios(RNG, 1, 39, 41), name="skip", **how))
        other = b.emit(ops.concat([other], name="skip.stored"))
        how = {"lo": out.lo, "hi": out.hi, "dtype": out.dtype, "rounding": rounding, "form": form}
        if form != "accumulator":
            how |= {"rhs_zero_point": 5, "lhs_zero_point": -300, "zero_point": 2}
        return b.emit(ops.add(x, other, m1, e1, m2, e2, name="sum", **how))

    return module(SHAPE, S20, emit)


def _check_add(mod: tvm.IRModule, **how: Any) -> None:
    assert [c.layer.ops[0].kind for c in lower(mod, 80).calls[1:4]] == [
        "requantize",
        "concat",
        "add",
    ]
    check(mod, full_range(RNG, S20, SHAPE), arch=80, kinds=KINDS, **how)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("form", "out"), [("fused", S8), ("accumulator", S32), ("two_sided", S8)])
def test_residual_adds(form: str, out: IntRange, rounding: str, wide: bool) -> None:
    _check_add(_add(form, rounding, wide, out))


@pytest.mark.parametrize(
    ("form", "skip", "out"),
    [
        ("fused", S16, S16), ("two_sided", S16, S32), ("two_sided", S32, U8),
        ("accumulator", U4, IntRange(0, INT32_MAX)), ("fused", S4, U4), ("fused", U8, S4),
    ],
)  # fmt: skip
def test_residuals_of_other_types(form: str, skip: IntRange, out: IntRange) -> None:
    _check_add(_add(form, "half_up", True, out, skip))


def test_two_outputs_and_chains_with_halos() -> None:
    def emit(b, x):
        m, e = ratios(RNG, C, 44, 46)
        wide = b.emit(ops.requantize(x, m, e, name="y", lo=0, hi=255, dtype="uint8"))
        narrow = b.emit(ops.requantize(x, m, e + 4, name="y.q2", lo=0, hi=15, dtype="uint8"))
        chained = b.emit(ops.requantize(wide, [7], [5], name="y.q3", lo=-8, hi=7, dtype="int8"))
        parts = []
        for i, t in enumerate((wide, narrow, chained)):
            w = np.ones((16, C, 1 + 2 * i, 1), np.int8)
            how = {"strides": [1, 1], "padding": [i, 0, i, 0], "zero_point": i}
            parts.append(b.emit(ops.conv2d(t, w, [0], name=f"c{i}", **how)))
        return b.emit(ops.concat(parts, name="joined"))

    mod = module(SHAPE, S20, emit)
    x = full_range(RNG, S20, SHAPE)
    lowered, _ = check(mod, x, arch=90, kinds=KINDS, rules=[Reader(), *RULES])
    layers = [c.layer for c in lowered.calls if c.layer.kind == "elementwise"]
    found = [[(t.layout.bits, t.layout.halo[0], t.fill) for _, t in x.outputs] for x in layers]
    assert found == [[(8, 0, 0), (4, 2, 2)], [(4, 1, 1)]]


@pytest.mark.parametrize("channels", [1, C])
def test_constants_that_differ_by_position(channels: int) -> None:
    def emit(b, x):
        m = RNG.integers(2**30, 2**31 - 1, (1, channels, *SHAPE[2:]))
        e = RNG.integers(42, 45, (1, channels, *SHAPE[2:]))
        y = ops.requantize(x, m, e, name="y", lo=-128, hi=127, dtype="int8")
        return b.emit(y)

    _run(module(SHAPE, S20, emit), S20)


@pytest.mark.parametrize("form", ["multiply", "divide"])
@pytest.mark.parametrize("scale", [0.3, RNG.uniform(0.01, 3, C)], ids=["one", "by channel"])
def test_dequantize_to_plain_floats(form: str, scale: Any) -> None:
    def emit(b, x):
        return b.emit(ops.dequantize(x, scale, 3, name="real", qmin=-128, qmax=127, form=form))

    _run(module(SHAPE, S8, emit), S8)


def test_features() -> None:
    def emit(b, x):
        m, e = ratios(RNG, 133, 31, 33)
        y = b.emit(ops.requantize(x, m, e, name="y", lo=-8, hi=7, dtype="int8"))
        return b.emit(ops.dequantize(y, 0.25, 0, name="real", qmin=-8, qmax=7))

    check(module((5, 133), S8, emit), full_range(RNG, S8, (5, 133)), arch=75, kinds=KINDS)


def test_planted_fault() -> None:
    # 2 * 3 * 5 pixels of two groups of channels: 60 threads have work.
    def plant(text: str) -> str:
        assert "< 60)" in text
        return text.replace("< 60)", "< 61)")

    with pytest.raises(EmulationError, match="out-of-bounds read"):
        _run(_requantize(S8, S8), S8, change=plant)


@needs_sass
def test_whole_vectors_and_one_packing_instruction_for_two_values() -> None:
    text = sass(_requantize(S8, S8), "elementwise", arch=75)
    # Data, and four channels' multipliers and shifts at a time.
    assert text.count("LDG.E.128") == text.count("LDG") == 1 + 2 * 4
    assert text.count("STG.E.128") == text.count("STG") == 1
    assert text.count("I2IP.S8.S32.SAT") == 8
    assert "LDL" not in text and "STL" not in text
    assert "IMAD.WIDE" in text
