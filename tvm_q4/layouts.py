"""Physical layouts of a library's tensors to logical ones and back, in NumPy.

The layout comes as it stands in a library's metadata (``calls[].outputs[].layout``): ``NCHW`` is
the logical order; ``NHWC`` has padded channels and a halo of rows and columns around each image.
With ``bits``, elements of that width are packed into int32 words along the channels, the lowest
channel in the lowest bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import LibraryError

_WORD_BITS = 32


def physical_shape(shape: Sequence[int], layout: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape in memory of a logical tensor [N, C, H, W] or [N, C].

    Raises
    ------
    LibraryError
        If the layout's kind is unknown, which a library of a later version may have.
    """
    if layout["kind"] == "NCHW":
        return tuple(shape)
    if layout["kind"] != "NHWC":
        msg = (
            f"tensor layout {layout['kind']!r} is unknown; use the tvm-q4 that compiled the library"
        )
        raise LibraryError(msg)
    n, _, h, w = _shape4(shape)
    top, left, bottom, right = layout["halo"]
    bits = layout.get("bits", 0)
    innermost = layout["channels"] * bits // _WORD_BITS if bits else layout["channels"]
    return (n, h + top + bottom, w + left + right, innermost)


def pack_words(array: NDArray, bits: int) -> NDArray[np.int32]:
    """Elements packed along the last axis into int32 words, the first in the lowest bits.

    Parameters
    ----------
    array : ndarray
        Integers that fit `bits`; the last axis holds a multiple of ``32 / bits``.
    bits : {4, 8, 16, 32}
    """
    if bits == 4:
        low, high = array[..., 0::2].astype(np.uint8), array[..., 1::2].astype(np.uint8)
        packed = (low & 15) | (high << 4)
    else:
        packed = array.astype(f"<i{bits // 8}", casting="unsafe")
    return np.ascontiguousarray(packed).view("<i4")


def unpack_words(words: NDArray, bits: int, dtype: str) -> NDArray:
    """Elements of type `dtype` from what `pack_words` made."""
    words = np.ascontiguousarray(words)
    if bits != 4:
        kind = "i" if np.dtype(dtype).kind == "i" else "u"
        return words.view(f"<{kind}{bits // 8}").astype(dtype)
    packed = words.view(np.uint8)
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    if np.dtype(dtype).kind == "i":
        nibbles = (nibbles ^ 8).astype(np.int8) - 8
    return nibbles.astype(dtype)


def to_logical(array: NDArray, shape: Sequence[int], layout: Mapping[str, Any]) -> NDArray:
    """The logical tensor, contiguous, without halo and padded channels.

    Parameters
    ----------
    array : ndarray
        As it lies in memory.
    shape : sequence of int
        Logical shape, [N, C, H, W] or [N, C].
    layout : mapping
        ``{"kind": "NCHW"}`` or ``{"kind": "NHWC", "halo": [t, l, b, r], "channels": Cp}``, packed
        ones with ``"bits"`` and the elements' ``"dtype"`` besides.

    Raises
    ------
    LibraryError
        If `array` does not have the shape that the layout gives.
    """
    expected = physical_shape(shape, layout)
    if array.shape != expected:
        msg = (
            f"a tensor of logical shape {list(shape)} has physical shape {list(array.shape)}, its "
            f"layout says {list(expected)}; the library's code and metadata do not belong together"
        )
        raise LibraryError(msg)
    if layout["kind"] == "NCHW":
        return np.ascontiguousarray(array)
    _, c, h, w = _shape4(shape)
    top, left, _, _ = layout["halo"]
    if layout.get("bits"):
        array = unpack_words(array, layout["bits"], layout["dtype"])
    inner = array[:, top : top + h, left : left + w, :c]
    return np.ascontiguousarray(inner.transpose(0, 3, 1, 2)).reshape(tuple(shape))


def to_physical(array: NDArray, layout: Mapping[str, Any], fill: int = 0) -> NDArray:
    """The tensor as a library stores it: halo and padded channels hold `fill`.

    Parameters
    ----------
    array : ndarray, [N, C, H, W] or [N, C]
    layout : mapping
        As for `to_logical`.
    fill : int
        Value of the halo (the tensor's zero point).
    """
    expected = physical_shape(array.shape, layout)
    if layout["kind"] == "NCHW":
        return np.ascontiguousarray(array)
    n, c, h, w = _shape4(array.shape)
    top, left, _, _ = layout["halo"]
    out = np.full((*expected[:3], layout["channels"]), fill, array.dtype)
    out[:, top : top + h, left : left + w, :c] = array.reshape(n, c, h, w).transpose(0, 2, 3, 1)
    return pack_words(out, layout["bits"]) if layout.get("bits") else out


def _shape4(shape: Sequence[int]) -> tuple[int, int, int, int]:
    n, c, h, w = (*shape, 1, 1)[:4]
    return n, c, h, w
