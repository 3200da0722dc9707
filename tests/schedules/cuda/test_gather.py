"""Data movement on CUDA: words and plain elements, bit-exact in the emulator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tvm import relax

from tests.cuda_emulator import EmulationError
from tests.schedules.builders import S4, S8, U4, U8, full_range, module, ratios
from tests.schedules.cuda.builders import Reader, check
from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.schedules.cuda.rules import RULES

RNG = np.random.default_rng(31)
SHAPE = (2, 19, 7, 6)
S16, S32 = IntRange(-32768, 32767), IntRange(-(2**31), 2**31 - 1)
TYPES = {"s8": S8, "u8": U8, "u4": U4, "s4": S4, "s16": S16, "s32": S32}
Move = Callable[[relax.Expr], relax.Expr]


def _chain(*moves: Move) -> Callable[[relax.BlockBuilder, relax.Var], relax.Expr]:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        for move in moves:
            x = b.emit(move(x))
        return x

    return emit


def _slice(axes: list[int], begin: list[int], end: list[int], step: list[int]) -> Move:
    return lambda x: relax.op.strided_slice(x, axes, begin, end, step)


def _pad(widths: list[int], value: int = 0) -> Move:
    return lambda x: relax.op.nn.pad(x, widths, "constant", value)


# One after the other: [2, 19, 7, 6], [2, 19, 4, 2], [2, 30, 4, 2], [2, 30, 6, 4].
OPTION_A = (
    _slice([2, 3], [0, 1], [7, 6], [2, 3]), _pad([0, 0, 5, 6, 0, 0, 0, 0]),
    _pad([0, 0, 0, 0, 1, 1, 2, 0], 7),
)  # fmt: skip
# One after the other: [2, 6, 7, 6], [1, 6, 7, 6], [1, 6, 5, 2].
CROPS = (
    _slice([1], [3], [14], [2]), _slice([0], [1], [2], [1]),
    _slice([2, 3], [1, -4], [6, 4], [1, 1]),
)  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("moves", [OPTION_A, CROPS], ids=["option a", "crops"])
def test_movement(moves: tuple[Move, ...], kind: str) -> None:
    values = TYPES[kind]
    lowered, _ = check(
        module(SHAPE, values, _chain(*moves)), full_range(RNG, values, SHAPE), arch=75
    )
    layouts = [call.layer.outputs[0][1].layout for call in lowered.calls]
    assert [layout.bits for layout in layouts[:-1]] == [values.bits] * (len(moves) + 1)
    assert layouts[-1].kind == "NCHW"


@pytest.mark.parametrize("kind", ["s8", "u4"])
def test_flatten(kind: str) -> None:
    values = TYPES[kind]
    mod = module(SHAPE, values, _chain(lambda x: relax.op.reshape(x, (2, 19 * 7 * 6))))
    check(mod, full_range(RNG, values, SHAPE), arch=90)


def test_halo_around_moved_elements() -> None:
    def emit(b, x):
        wide = b.emit(OPTION_A[1](x))
        how = {"strides": [1, 1], "padding": [1, 2, 0, 1], "zero_point": -3}
        return b.emit(ops.conv2d(wide, np.ones((16, 30, 3, 3), np.int8), [0], name="c", **how))

    mod = module((2, 19, 3, 2), S8, emit)
    check(mod, full_range(RNG, S8, (2, 19, 3, 2)), arch=80, rules=[Reader(), *RULES])


def test_rank_two() -> None:
    def emit(b, x):
        m, e = ratios(RNG, 21, 31, 32)
        return b.emit(ops.requantize(x, m, e, name="y", lo=-8, hi=7, dtype="int8"))

    check(module((3, 21), S8, emit), full_range(RNG, S8, (3, 21)), arch=80)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("< 336)", "< 352)"), ("/ 168)", "/ 84)")],
    ids=["threads beyond the last word", "wrong image"],
)
def test_planted_faults(right: str, wrong: str) -> None:
    mod = module((2, 16, 7, 6), S8, lambda b, x: b.emit(_pad([0] * 8)(x)))
    texts = []

    def plant(source: str) -> str:
        texts.append(source)
        return source.replace(right, wrong)

    with pytest.raises(EmulationError, match="out-of-bounds read"):
        check(mod, full_range(RNG, S8, (2, 16, 7, 6)), arch=80, change=plant)
    assert right in texts[0]
