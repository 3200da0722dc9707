"""What the tests of NVIDIA's W4A4 ResNet-50 share; formulas from the data folder's README."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

F32 = np.float32
MEAN, STD = np.array([0.485, 0.456, 0.406], F32), np.array([0.229, 0.224, 0.225], F32)
STORED = 30
"""Tensors inside the network that ``reference.npz`` holds, ``fm.*`` and ``in.*``."""


def read_reference(folder: Path) -> dict[str, NDArray]:
    """Arrays of ``reference.npz``."""
    with np.load(folder / "reference.npz") as data:
        return dict(data)


def read_inputs(folder: Path, count: int) -> NDArray[np.int8]:
    """Quantized inputs [count, 3, 224, 224] of the first images, at most 32."""
    with np.load(folder / "inputs32.npz") as data:
        return data["input"][:count]


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(p / 255 - mean) / std in float32; [N, H, W, C] to [N, C, H, W]."""
    x = (pixels.astype(F32) / F32(255) - MEAN) / STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def quantized(x: NDArray[np.float32]) -> NDArray[np.int8]:
    """The README's input formula, step 1."""
    return np.clip(np.rint(x * F32(127) / F32(2.64)), -127, 127).astype(np.int8)


def dequantized(inputs: NDArray[np.int8]) -> NDArray[np.float32]:
    """Floats that the input quantizer brings back to `inputs`."""
    return inputs.astype(F32) * F32(2.64) / F32(127)


def sample_image(folder: Path, name: str) -> NDArray[np.float32]:
    """One image of the sample, centre 224x224, normalised, [1, 3, 224, 224]."""
    image = pytest.importorskip("PIL.Image")
    path = next((folder.parent / "imagenet-sample").rglob(name))
    pixels = np.asarray(image.open(path).convert("RGB"))[16:240, 16:240]
    return normalise(pixels[None])


def same_input(x: NDArray[np.int8], crc32: int) -> bool:
    """Whether the quantized input is the reference's: JPEG decoders differ."""
    return zlib.crc32(np.ascontiguousarray(x).tobytes()) == int(crc32)


def sample_images(
    folder: Path, reference: dict[str, NDArray], count: int = 500
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Index and network input of each sample image that decodes to the reference's integers."""
    for i, name in enumerate(reference["image_file"][:count]):
        x = sample_image(folder, str(name))
        if same_input(quantized(x), reference["input_crc32"][i]):
            yield i, x
