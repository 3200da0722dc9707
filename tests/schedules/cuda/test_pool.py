"""Pools on CUDA: windows of one thread and of a block, bit-exact in the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from tests.cuda_emulator import EmulationError
from tests.schedules.builders import S4, S8, U4, U8, call_of, full_range, module, ratios
from tests.schedules.cuda.builders import Reader, check
from tests.schedules.cuda.sass import needs_sass, sass
from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.reference_ops.windows import window_counts
from tvm_q4.schedules.cuda.rules import RULES

RNG = np.random.default_rng(41)
SHAPE = (2, 21, 9, 8)
S16, S32 = IntRange(-32768, 32767), IntRange(-(2**31), 2**31 - 1)
TYPES = {"u8": U8, "s8": S8, "u4": U4, "s4": S4, "s16": S16, "s32": S32}
KINDS = ("max_pool2d", "avg_pool2d")
WINDOWS: dict[str, dict[str, Any]] = {
    "3x3 padded": {"pool_size": [3, 3], "strides": [2, 2], "padding": [1, 1, 1, 1]},
    "asymmetric": {"pool_size": [3, 2], "strides": [1, 3], "padding": [0, 1, 2, 0]},
    "ceil padded": {
        "pool_size": [3, 3], "strides": [2, 2], "padding": [1, 1, 1, 1], "ceil_mode": True,
    },
    "global": {"pool_size": [9, 8], "strides": [1, 1], "padding": [0] * 4},
    "large padded": {"pool_size": [5, 4], "strides": [3, 3], "padding": [2, 1, 2, 1]},
}  # fmt: skip


def _maximum(values: IntRange, window: str) -> tvm.IRModule:
    how = WINDOWS[window]
    return module(SHAPE, values, lambda b, x: b.emit(ops.max_pool2d(x, name="p", **how)))


@pytest.mark.parametrize(
    ("kind", "window"),
    [
        *((kind, "3x3 padded") for kind in TYPES),
        *((kind, "large padded") for kind in ("u8", "s4", "s32")),
        ("s8", "asymmetric"),
    ],
)
def test_maximum(kind: str, window: str) -> None:
    values = TYPES[kind]
    lowest = np.full(SHAPE, values.lo, values.dtype)
    x = full_range(RNG, values, SHAPE)
    check(_maximum(values, window), x, lowest, arch=75, kinds=KINDS)


def test_dilated_maximum_with_epilogue_and_halo() -> None:
    def emit(b, x):
        how = {"pool_size": [3, 2], "strides": [1, 2], "padding": [2, 0, 1, 1], "dilation": [2, 3]}
        y = b.emit(ops.max_pool2d(x, name="p", **how))
        m, e = ratios(RNG, 21, 30, 34)
        z = b.emit(ops.requantize(y, m, e, name="z", lo=0, hi=15, dtype="uint8", zero_point=4))
        w = np.ones((16, 21, 3, 3), np.int8)
        conv = ops.conv2d(z, w, [0], name="c", strides=[1, 1], padding=[1, 2, 1, 2], zero_point=4)
        return b.emit(conv)

    mod = module(SHAPE, S8, emit)
    rules = [Reader(), *RULES]
    lowered, _ = check(mod, full_range(RNG, S8, SHAPE), arch=80, kinds=KINDS, rules=rules)
    tensor = call_of(lowered, "max_pool2d").layer.outputs[0][1]
    assert (tensor.layout.halo, tensor.fill, tensor.layout.bits) == ((1, 2, 1, 2), 4, 4)


def _average(
    values: IntRange, window: str, rounding: str, zero: int = 0, inside: bool = False
) -> tvm.IRModule:
    how = {"rounding": rounding, "count_include_pad": not inside, "zero_point": zero}
    how |= WINDOWS[window]
    return module(SHAPE, values, lambda b, x: b.emit(ops.avg_pool2d(x, name="p", **how)))


@pytest.mark.parametrize(
    ("kind", "window", "rounding", "inside"),
    [
        ("s8", "ceil padded", "truncate", False), ("s8", "ceil padded", "nearest", True),
        ("s8", "asymmetric", "sum", False), ("s8", "large padded", "nearest", False),
        ("u4", "3x3 padded", "nearest", False), ("u4", "ceil padded", "truncate", True),
        ("u4", "large padded", "truncate", True), ("u4", "global", "sum", False),
        ("u8", "3x3 padded", "sum", True), ("u8", "global", "truncate", False),
        ("s16", "asymmetric", "nearest", True), ("s16", "global", "sum", False),
    ],
)  # fmt: skip
def test_average(kind: str, window: str, rounding: str, inside: bool) -> None:
    values = TYPES[kind]
    zero = -3 if values.signed else 2
    mod = _average(values, window, rounding, zero, inside)
    bounds = [np.full(SHAPE, v, values.dtype) for v in (values.lo, values.hi, zero)]
    check(mod, full_range(RNG, values, SHAPE), *bounds, arch=80, kinds=KINDS)


@pytest.mark.parametrize("rounding", ["truncate", "sum"])
def test_global_pool_with_epilogue(rounding: str) -> None:
    def emit(b, x):
        how = {"rounding": rounding, "zero_point": 3, **WINDOWS["global"]}
        y = b.emit(ops.avg_pool2d(x, name="p", **how))
        m, e = ratios(RNG, 150, 36, 37) if rounding == "sum" else ratios(RNG, 150, 30, 31)
        return b.emit(ops.requantize(y, m, e, name="z", lo=-8, hi=7, dtype="int8"))

    # Ten groups of channels an image: blocks of eight reach into the next image and beyond all.
    shape = (3, 150, 9, 8)
    x = full_range(RNG, S8, shape)
    _, counts = check(module(shape, S8, emit), x, arch=90, kinds=KINDS)
    assert counts == {"barrier": 2 * 4}


@pytest.mark.parametrize("window", ["ceil padded", "large padded"])
def test_one_ratio_for_each_number_of_positions(window: str) -> None:
    attrs = WINDOWS[window]
    geometry = (attrs["pool_size"], attrs["strides"], attrs["padding"], [1, 1])
    out = ops.pool_output(SHAPE[2:], *geometry, attrs.get("ceil_mode", False))
    n = window_counts(SHAPE[2:], *geometry, out, include_pad=False)
    assert len(np.unique(n)) > 1
    m = np.floor(2.0**36 / (n * 37.0) + 0.5).astype(np.int32)[None, None]

    def emit(b, x):
        how = {"zero_point": 5, "count_include_pad": False}
        total = b.emit(ops.avg_pool2d(x, name="p", **how, **attrs))
        y = ops.requantize(total, m, [30], name="y", lo=-128, hi=127, dtype="int8", zero_point=5)
        return b.emit(y)

    check(module(SHAPE, S8, emit), full_range(RNG, S8, SHAPE), arch=80, kinds=KINDS)


@pytest.mark.parametrize(
    ("wanted", "planted", "message"),
    [
        ("  __syncthreads();\n  if", "  if", "uninitialised read"),
        (" < 72)", " < 96)", "out-of-bounds read"),
        ("+ 264)]", "+ 262)]", "uninitialised read|race"),
    ],
    ids=["no barriers", "positions beyond the window", "words of two channels overlap"],
)
def test_planted_faults(wanted: str, planted: str, message: str) -> None:
    def plant(text: str) -> str:
        assert wanted in text
        return text.replace(wanted, planted)

    mod = _average(S8, "global", "sum")
    with pytest.raises(EmulationError, match=message):
        check(mod, full_range(RNG, S8, SHAPE), arch=80, kinds=KINDS, change=plant)


@needs_sass
@pytest.mark.parametrize("kind", KINDS)
def test_whole_vectors_and_no_local_memory(kind: str) -> None:
    pools = {"max_pool2d": _maximum(U8, "3x3 padded"), "avg_pool2d": _average(U8, "global", "sum")}
    text = sass(pools[kind], kind, arch=75)
    assert "LDG.E.128" in text and "STG.E.128" in text
    assert "LDL" not in text and "STL" not in text
