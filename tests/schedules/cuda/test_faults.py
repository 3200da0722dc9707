"""Faults planted in the kernels that our rules generate: the emulator or the comparison finds each.

The same kernels without the fault pass. That the emulator finds faults is tested beside it; here is
shown that our kernels would be caught if a rule left out a barrier, a wait or a bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm.target import Target

from tests.cuda_emulator import EmulationError
from tests.schedules.builders import S8, U4, full_range, module, ratios, weights
from tests.schedules.cuda.builders import Change, Reader, check
from tests.schedules.cuda.convolutions import Conv, Forced, forced
from tvm_q4 import ops
from tvm_q4.schedules.cuda.rules import RULES
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.rule import Params

W4A4 = Conv((1, 32, 5, 6), 24, (3, 3), padding=(1, 1, 1, 1), data=U4, bits=4, result=U4)
W8A8 = replace(W4A4, data=S8, bits=8, result=S8)
TILE = {"bm": 32, "bn": 32, "bk": 32, "wm": 32, "wn": 32, "stages": 2, "split_k": 1}
TWO_WARPS = TILE | {"bm": 64}
THREE_STAGES = TWO_WARPS | {"stages": 3}
SPLIT = TILE | {"split_k": 2}

TID = r"\(\(int\)threadIdx\.x\)"
WAIT = r"tvm_builtin_ptx_cp_async_wait_group_async_wait_group_\d\(\);"
COMMIT = r"tvm_builtin_ptx_cp_async_commit_group_async_commit_group\(\);"

# By name: convolution, arch, tile; the text of which the first match is changed, and what it
# becomes; what the emulator must say (None: it finds nothing, but results differ).
FAULTS: dict[str, tuple[Conv, int, dict[str, int], str, str, str | None]] = {
    "no wait for copies": (W4A4, 80, TWO_WARPS, rf"{{\s*{WAIT}", "{", "was waited for"),
    "a wait that leaves a group": (
        W4A4, 80, THREE_STAGES, "wait_group 1;", "wait_group 2;", "was waited for",
    ),
    "no commit": (W4A4, 80, THREE_STAGES, rf"\n\s*{COMMIT}", "", "was waited for"),
    "no barrier after copies": (W4A4, 80, TWO_WARPS, r"__syncthreads\(\);", "", "race"),
    "no barrier after stores": (W8A8, 75, TWO_WARPS, r"__syncthreads\(\);", "", "race"),
    "copies to the stage in use": (
        W4A4, 80, TILE, r"\(v_9 \+ 1\) & 1", "v_9 & 1", "was waited for",
    ),
    "copies swizzled in another way": (
        W4A4, 80, TILE, r"& 15\) >> 3\)\) \* 4", "& 15) >> 2)) * 4", "race",
    ),
    "the last slab left out": (W4A4, 80, TILE, "v_9 < 5;", "v_9 < 4;", None),
    "wrong rows of a fragment": (
        W4A4, 80, TILE, rf"(ldmatrix\w+\([^;]*?{TID} & )15", r"\g<1>7", None,
    ),
    "wrong rows of a fragment on sm_75": (
        W4A4, 75, TILE, rf"(ldmatrix\w+\([^;]*?)\({TID} \* 8\)", r"\1((threadIdx.x ^ 1) * 8)", None,
    ),
    "wrong register of a fragment": (
        W4A4, 80, TILE, r'"r"(\(\(\(unsigned \*\)\(_ptr_4 \+ 0\)\))\[1\]\)', r'"r"\1[2])', None,
    ),
    "another sign of products": (W8A8, 80, TILE, r"s32\.s8\.s8", "s32.u8.s8", None),
    "swapped channels of a word": (
        W4A4, 80, TILE, r"(cvt\.pack\S+ %0,) %1, %2", r"\1 %2, %1", None,
    ),
    "a wrong row of results": (
        W4A4, 80, TILE, rf"y0_ptr\[\({TID} \+ 32\)\]", "y0_ptr[threadIdx.x]", None,
    ),
    "rows beyond the last": (
        W4A4, 80, TILE, rf"{TID} < 24\)", "threadIdx.x < 32)", "out-of-bounds",
    ),
    "parts of a split sum in one place": (
        W4A4, 80, SPLIT, r"(scratch_ptr\)\[[^;]*?)\(int\)blockIdx\.x", r"\g<1>0", "race",
    ),
    "a part of a split sum not stored": (
        W4A4, 80, SPLIT, r"\(\(int4\*\)scratch_ptr", "if (!blockIdx.x) ((int4*)scratch_ptr", None,
    ),
}  # fmt: skip


def planted(pattern: str, new: str, done: list[bool]) -> Change:
    """A change of the first match in a kernel's text; `done` tells whether there was one."""

    def change(source: str) -> str:
        changed, count = re.subn(pattern, new, source, count=1)
        done.append(count == 1)
        return changed

    return change


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault: str) -> None:
    conv, arch, tile, pattern, new, message = FAULTS[fault]
    done: list[bool] = []
    with pytest.raises(EmulationError if message else AssertionError, match=message):
        check(
            conv.module(), conv.input(), arch=arch, rules=forced(**tile), kinds=("conv2d",),
            change=planted(pattern, new, done),
        )  # fmt: skip
    assert any(done), "the fault was not planted"


CONTROLS = {(c, a, tuple(t.items())) for c, a, t, *_ in FAULTS.values()}


@pytest.mark.parametrize(("conv", "arch", "tile"), sorted(CONTROLS, key=str))
def test_the_same_without_fault(conv: Conv, arch: int, tile: tuple[tuple[str, int], ...]) -> None:
    rules = forced(**dict(tile))
    check(conv.module(), conv.input(), arch=arch, rules=rules, kinds=("conv2d",))


class FaultyWeights(Forced):
    """The rule with packed weights that `spoil` changes."""

    def __init__(self, spoil: Callable[[NDArray], NDArray]) -> None:
        super().__init__(**TILE)
        self._spoil = spoil

    def constants(self, layer: Layer, target: Target, params: Params) -> list[np.ndarray]:
        weight, *others = super().constants(layer, target, params)
        return [self._spoil(weight), *others]


def swapped_nibbles(words: NDArray) -> NDArray:
    data = words.view(np.uint8)
    return ((data >> 4) | (data << 4)).astype(np.uint8).view(np.int32)


def rotated_rows(words: NDArray) -> NDArray:
    return np.roll(words.reshape(32, -1), 1, axis=0).ravel()


@pytest.mark.parametrize(("spoil", "arch"), [(swapped_nibbles, 80), (rotated_rows, 90)])
def test_wrong_weights_are_found(spoil: Callable[[NDArray], NDArray], arch: int) -> None:
    rules = [FaultyWeights(spoil), *RULES]
    with pytest.raises(AssertionError):
        check(W4A4.module(), W4A4.input(), arch=arch, rules=rules, kinds=("conv2d",))


class OnlyFirst(Forced):
    """The rule with one tile, for the convolution ``c`` alone."""

    def applies(self, layer: Layer, target: Target) -> bool:
        return super().applies(layer, target) and layer.ops[0].name == "c"


def _read_with_padding() -> tvm.IRModule:
    """A convolution whose result another one reads, with a zero point in its padding."""
    rng = np.random.default_rng(3)
    geometry = {"strides": [1, 1], "padding": [1] * 4, "weight_bits": 4}

    def emit(b, x):
        acc = b.emit(ops.conv2d(x, weights(rng, 4, (24, 32, 3, 3)), [3], name="c", **geometry))
        how = {"name": "y", "lo": 0, "hi": 15, "dtype": "uint8"}
        y = b.emit(ops.requantize(acc, *ratios(rng, 24), **how))
        w = weights(rng, 4, (16, 24, 3, 3))
        return b.emit(ops.conv2d(y, w, [0], name="d", zero_point=5, **geometry))

    return module((1, 32, 5, 6), U4, emit)


@pytest.mark.parametrize(
    ("pattern", "new"),
    [(rf"{TID} < 26\)", "threadIdx.x < 25)"), ("1431655765", "0"), ("nothing to change", "")],
    ids=["a pixel left out", "another value", "control"],
)
def test_halo(pattern: str, new: str) -> None:
    x = full_range(np.random.default_rng(4), U4, (1, 32, 5, 6))
    done: list[bool] = []
    rules = [OnlyFirst(**TILE), Reader(), *RULES]

    def run() -> None:
        change = planted(pattern, new, done)
        check(_read_with_padding(), x, arch=80, rules=rules, kinds=("conv2d",), change=change)

    if not new:
        run()
        return
    with pytest.raises(AssertionError):
        run()
    assert any(done), "the fault was not planted"
