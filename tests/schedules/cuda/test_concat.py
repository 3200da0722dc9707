"""Concatenation on CUDA: any channels and widths of branches, bit-exact in the emulator."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from tests.cuda_emulator import EmulationError
from tests.schedules.builders import S8, U4, U8, call_of, full_range, module, ratios
from tests.schedules.cuda.builders import Reader, check
from tests.schedules.cuda.sass import needs_sass, sass
from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.schedules.cuda.rules import RULES

RNG = np.random.default_rng(43)
SHAPE = (2, 6, 3, 4)
RULES_WITH_READER = [Reader(), *RULES]
KINDS = ("concat",)
S16 = IntRange(-32768, 32767)


def _concat(
    channels: tuple[int, ...], ranges: tuple[IntRange, ...], order: tuple[int, ...], halo: bool
) -> tvm.IRModule:
    """Branches of stated channels and ranges, made by convolutions that are not run."""
    dtype = ranges[0].dtype

    def emit(b, x):
        parts = []
        for i, (c, values) in enumerate(zip(channels, ranges, strict=True)):
            w = np.full((c, 6, 1, 1), i + 1, np.int8)
            acc = b.emit(ops.conv2d(x, w, [i], name=f"c{i}", strides=[1, 1], padding=[0] * 4))
            how = {"name": f"y{i}", "lo": values.lo, "hi": values.hi, "dtype": dtype}
            parts.append(b.emit(ops.requantize(acc, *ratios(RNG, c, 38, 40), **how)))
        joined = b.emit(ops.concat([parts[i] for i in order], name="joined"))
        if not halo:
            return joined
        w = np.ones((16, sum(channels[i] for i in order), 3, 3), np.int8)
        how = {"strides": [1, 1], "padding": [1] * 4, "zero_point": 6}
        return b.emit(ops.conv2d(joined, w, [0], name="c", **how))

    return module(SHAPE, U8, emit)


@pytest.mark.parametrize(
    ("channels", "ranges", "order", "halo"),
    [
        ((16, 48), (U8, U8), (0, 1), False),
        ((32, 16, 7), (U4, U8, U4), (0, 1, 2), True),
        ((5, 20, 33), (U8, U4, U4), (2, 0, 1), True),
        ((17, 3), (U4, U4), (0, 0, 1, 0), False),
        ((1, 40), (S16, S16), (1, 0), False),
    ],
    ids=["whole vectors", "widths of bits", "any channels", "four bits, twice", "sixteen bits"],
)
def test_concat(
    channels: tuple[int, ...], ranges: tuple[IntRange, ...], order: tuple[int, ...], halo: bool
) -> None:
    mod = _concat(channels, ranges, order, halo)
    x = full_range(RNG, U8, SHAPE)
    lowered, _ = check(mod, x, arch=80, rules=RULES_WITH_READER, kinds=KINDS)
    layer = call_of(lowered, "concat").layer
    assert layer.outputs[0][1].layout.bits == max(t.layout.bits for t in layer.inputs)


def test_features_with_input() -> None:
    def emit(b, x):
        m, e = ratios(RNG, 21, 31, 32)
        y = b.emit(ops.requantize(x, m, e, name="y", lo=-8, hi=7, dtype="int8"))
        return b.emit(ops.concat([y, x, y], name="joined"))

    check(module((3, 21), S8, emit), full_range(RNG, S8, (3, 21)), arch=75)


def test_planted_fault() -> None:
    mod = _concat((16, 48), (U8, U8), (0, 1), False)
    with pytest.raises(EmulationError, match="out-of-bounds"):
        check(
            mod, full_range(RNG, U8, SHAPE), arch=80, rules=RULES_WITH_READER, kinds=KINDS,
            change=lambda text: text.replace("< 96)", "< 128)"),
        )  # fmt: skip


@needs_sass
def test_whole_vectors_and_no_local_memory() -> None:
    mod = _concat((16, 48), (U8, U8), (0, 1), False)
    text = sass(mod, "concat", arch=80, rules=RULES_WITH_READER)
    assert text.count("LDG.E.128") == 2 and text.count("LDG") == 2
    assert text.count("STG.E.128") == 1
    assert "LDL" not in text and "STL" not in text
