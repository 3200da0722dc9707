"""Inputs of the sample kernels, and what NumPy says of their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.cuda_emulator.launch import Uninitialized
from tests.cuda_emulator.prim_func import run_prim_func
from tests.cuda_emulator.sample_epilogue import CHANNELS, epilogue
from tests.cuda_emulator.samples import ROWS, SLAB, Mma, gemm

Change = Callable[[str], str]
PIXELS = 13


@dataclass(frozen=True)
class Gemm:
    """A sample: the architecture, and the arguments of `samples.gemm`."""

    arch: str
    mma: Mma
    staging: str
    fragments: str

    def __str__(self) -> str:
        m = self.mma
        return f"{self.arch}-m{m.m}n8k{m.k}-{m.a_type}-{m.b_type}-{self.staging}-{self.fragments}"


def packed(rng: np.random.Generator) -> np.ndarray:
    """Random words, and rows of the extremes of every type."""
    words = rng.integers(0, 2**32, (ROWS, 4 * SLAB), dtype=np.uint64).astype(np.uint32)
    words[0], words[1], words[2], words[3] = 0x80808080, 0x7F7F7F7F, 0xFFFFFFFF, 0x88888888
    words[4] = 0x77777777
    return words.view(np.int32)


def unpack(words: np.ndarray, dtype: str) -> np.ndarray:
    """Elements of packed words, low bits first, as int64."""
    values = words.view(np.uint8)
    bits = int(dtype.lstrip("uint"))
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(len(words), -1)
    values = values.astype(np.int64)
    return values if dtype.startswith("u") else values - ((values >> (bits - 1)) << bits)


def run_gemm(sample: Gemm, change: Change | None = None) -> tuple[bool, dict[str, int]]:
    """Whether the kernel's product is NumPy's, and what was executed."""
    rng = np.random.default_rng(0)
    a, b, c = packed(rng), packed(rng), np.zeros((ROWS, ROWS), np.int32)
    func = gemm(sample.mma, sample.staging, sample.fragments)
    counts = run_prim_func(func, [a, b, Uninitialized(c)], sample.arch, change=change)
    expected = unpack(a, sample.mma.a_type) @ unpack(b, sample.mma.b_type).T
    return bool((c == expected).all()), counts


def run_epilogue(change: Change | None = None) -> tuple[bool, bool]:
    """Whether the int8 results and the packed nibbles of the epilogue are NumPy's."""
    rng = np.random.default_rng(1)
    x = rng.integers(-(2**30), 2**30, (PIXELS, CHANNELS)).astype(np.int32)
    x[0], x[1], x[2] = 2**30, -(2**30), 0
    bias = rng.integers(-(2**20), 2**20, CHANNELS).astype(np.int32)
    m = rng.integers(2**30, 2**31, CHANNELS).astype(np.int32)
    e = rng.integers(52, 56, CHANNELS).astype(np.int32)
    y, z = np.zeros((PIXELS, CHANNELS), np.int8), np.zeros((PIXELS, CHANNELS // 8), np.uint32)
    args = [x, bias, m, e, Uninitialized(y), Uninitialized(z)]
    run_prim_func(epilogue(PIXELS), args, "sm_75", change=change)
    product = (x.astype(np.int64) + bias) * m
    want = np.clip((product + (np.int64(1) << (e.astype(np.int64) - 1))) >> e, -128, 127)
    assert {-128, 127} < set(want.ravel().tolist())
    nibbles = unpack(z.view(np.int32), "uint4")
    return bool((y == want).all()), bool((nibbles == np.clip(want, 0, 15)).all())
