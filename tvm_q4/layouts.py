"""Physical layouts of a library's tensors to logical ones and back, in NumPy.

The layout comes as it stands in a library's metadata (``calls[].outputs[].layout``): ``NCHW`` is
the logical order; ``NHWC`` has padded channels and a halo of rows and columns around each image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import LibraryError


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
    return (n, h + top + bottom, w + left + right, layout["channels"])


def to_logical(array: NDArray, shape: Sequence[int], layout: Mapping[str, Any]) -> NDArray:
    """The logical tensor, contiguous, without halo and padded channels.

    Parameters
    ----------
    array : ndarray
        As it lies in memory.
    shape : sequence of int
        Logical shape, [N, C, H, W] or [N, C].
    layout : mapping
        ``{"kind": "NCHW"}`` or ``{"kind": "NHWC", "halo": [t, l, b, r], "channels": Cp}``.

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
    out = np.full(expected, fill, array.dtype)
    out[:, top : top + h, left : left + w, :c] = array.reshape(n, c, h, w).transpose(0, 2, 3, 1)
    return out


def _shape4(shape: Sequence[int]) -> tuple[int, int, int, int]:
    n, c, h, w = (*shape, 1, 1)[:4]
    return n, c, h, w
