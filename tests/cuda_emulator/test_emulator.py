"""The emulator computes what the instructions compute, and catches planted faults."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from tests.cuda_emulator import EmulationError, Uninitialized, compiler, run
from tests.cuda_emulator.prim_func import run_prim_func
from tests.cuda_emulator.sample_epilogue import CHANNELS, epilogue
from tests.cuda_emulator.samples import ROWS, SLAB, Mma, gemm

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

S8 = Mma(16, 32, "int8", "int8")
U4S4 = Mma(16, 64, "uint4", "int4")

GEMMS = [
    ("sm_80", S8, "shared", "ldmatrix"),
    ("sm_80", Mma(16, 32, "uint8", "int8"), "cp.async", "ldmatrix"),
    ("sm_80", U4S4, "shared", "ldmatrix"),
    ("sm_80", U4S4, "cp.async", "loads"),
    ("sm_80", Mma(16, 64, "int4", "int4"), "cp.async", "ldmatrix"),
    ("sm_80", Mma(16, 64, "uint4", "uint4"), "registers", "loads"),
    ("sm_80", Mma(16, 16, "int8", "int8"), "registers", "loads"),
    ("sm_80", Mma(16, 32, "uint4", "int4"), "shared", "loads"),
    ("sm_75", Mma(8, 32, "uint4", "int4"), "registers", "loads"),
    ("sm_75", Mma(8, 32, "int4", "int4"), "registers", "loads"),
    ("sm_75", Mma(8, 16, "int8", "int8"), "registers", "loads"),
    ("sm_75", Mma(8, 16, "uint8", "int8"), "shared", "loads"),
]


def packed(rng: np.random.Generator) -> np.ndarray:
    """Random words, and rows of the extremes of every type."""
    words = rng.integers(0, 2**32, (ROWS, 4 * SLAB), dtype=np.uint64).astype(np.uint32)
    words[0], words[1], words[2], words[3] = 0x80808080, 0x7F7F7F7F, 0xFFFFFFFF, 0x88888888
    words[4] = 0x77777777
    return words.view(np.int32)


def unpack(words: np.ndarray, dtype: str) -> np.ndarray:
    """Elements of packed words, low bits first, as int64."""
    values = words.view(np.uint8)
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(len(words), -1)
    values = values.astype(np.int64)
    return values if dtype.startswith("u") else values - ((values >> (bits - 1)) << bits)


def run_gemm(
    arch: str,
    mma: Mma,
    staging: str,
    fragments: str,
    change: Callable[[str], str] | None = None,
    args: list | None = None,
) -> tuple[bool, dict[str, int]]:
    """Whether the kernel's product is NumPy's, and what was executed."""
    rng = np.random.default_rng(0)
    a, b, c = packed(rng), packed(rng), np.zeros((ROWS, ROWS), np.int32)
    func = gemm(mma, staging, fragments)
    counts = run_prim_func(func, args or [a, b, Uninitialized(c)], arch, change=change)
    expected = unpack(a, mma.a_type) @ unpack(b, mma.b_type).T
    return bool((c == expected).all()), counts


@pytest.mark.parametrize(("arch", "mma", "staging", "fragments"), GEMMS, ids=str)
def test_products_are_exact(arch: str, mma: Mma, staging: str, fragments: str) -> None:
    equal, counts = run_gemm(arch, mma, staging, fragments)
    assert equal
    instructions = 2 * (16 // mma.m) * 4 * (4 * SLAB // mma.words)
    assert [v for k, v in counts.items() if k.startswith("mma")] == [instructions]
    assert "ldmatrix bank conflicts" not in counts
    assert counts.get("cp.async.16", 0) == (2 * 64 * 4 if staging == "cp.async" else 0)


def test_epilogue_is_exact() -> None:
    pixels = 13
    rng = np.random.default_rng(1)
    x = rng.integers(-(2**31), 2**31, (pixels, CHANNELS)).astype(np.int32) // 2
    x[0], x[1], x[2] = 2**30, -(2**30), 0
    bias = rng.integers(-(2**20), 2**20, CHANNELS).astype(np.int32)
    m = rng.integers(2**30, 2**31, CHANNELS).astype(np.int32)
    e = rng.integers(45, 62, CHANNELS).astype(np.int32)
    y, z = np.zeros((pixels, CHANNELS), np.int8), np.zeros((pixels, CHANNELS // 8), np.uint32)
    run_prim_func(epilogue(pixels), [x, bias, m, e, Uninitialized(y), Uninitialized(z)], "sm_75")
    product = (x.astype(np.int64) + bias) * m
    want = np.clip((product + (np.int64(1) << (e.astype(np.int64) - 1))) >> e, -128, 127)
    assert len(np.unique(want)) > 200
    assert (y == want).all()
    assert (unpack(z.view(np.int32), "uint4") == np.clip(want, 0, 15)).all()
