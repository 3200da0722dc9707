"""Random network inputs that exercise the whole input range and still look like images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXTREMES = 0.02
"""Share of pixels that are set to extreme values."""


def sample_input(metadata: Mapping[str, Any], count: int, *, dtype: str, seed: int = 0) -> NDArray:
    """Random inputs for a library, the same for the same seed.

    Even images are smooth random fields, which drive a trained network about as photographs do, odd
    images uniform noise; a few pixels of each lie at both ends of the range and beyond.

    Parameters
    ----------
    metadata : mapping
        A library's metadata.
    count : int
        Number of images.
    dtype : str
        ``float32``, or the integer type of the quantized input.
    seed : int

    Returns
    -------
    ndarray [count, C, H, W]
    """
    rng = np.random.default_rng(seed)
    entry = metadata["input"]
    shape = (count, *entry["shape"][1:])
    quantized = entry["quantized"]
    if dtype != "float32":
        return _integers(rng, shape, quantized["lo"], quantized["hi"]).astype(dtype)
    if quantized is None:
        return _floats(rng, shape, -2.5, 2.5)
    low, high = (
        (quantized[k] - quantized["zero_point"]) * quantized["scale"] for k in ("lo", "hi")
    )
    x = _floats(rng, shape, low, high)
    _set_special(rng, x, quantized["scale"])
    return x


def _fields(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """One image each, values in 0..1: smooth (even images) or uniform noise (odd ones)."""
    out = rng.random(shape)
    n, c, h, w = shape
    for i in range(0, n, 2):
        rows, columns = np.linspace(0, 1, h)[:, None], np.linspace(0, 1, w)[None, :]
        for k in range(c):
            waves = rng.uniform(0.5, 6, (6, 2)), rng.uniform(0, 2 * np.pi, 6)
            angles = [
                2 * np.pi * (a * rows + b * columns) + p for (a, b), p in zip(*waves, strict=True)
            ]
            out[i, k] = 0.5 + 0.08 * np.sum(np.sin(angles), axis=0) + 0.1 * (out[i, k] - 0.5)
    return np.clip(out, 0, 1)


def _floats(
    rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float
) -> NDArray[np.float32]:
    x = low + (high - low) * _fields(rng, shape)
    extreme = rng.random(shape) < _EXTREMES
    x[extreme] = rng.choice(
        [low, high, low - (high - low), high + (high - low)], int(extreme.sum())
    )
    return x.astype(np.float32)


def _set_special(rng: np.random.Generator, x: NDArray[np.float32], scale: float) -> None:
    """Put rounding ties of the quantizer on some pixels, infinities (which clamp) on two."""
    tie = rng.random(x.shape) < _EXTREMES
    x[tie] = (np.floor(x[tie] / scale) + 0.5) * scale
    flat = x.reshape(-1)
    flat[rng.integers(0, flat.size, 2)] = [np.inf, -np.inf]


def _integers(
    rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int
) -> NDArray[np.int64]:
    x = np.rint(low + (high - low) * _fields(rng, shape)).astype(np.int64)
    extreme = rng.random(shape) < _EXTREMES
    x[extreme] = rng.choice([low, high], int(extreme.sum()))
    return x
