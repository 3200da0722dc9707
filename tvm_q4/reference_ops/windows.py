"""Padding and sliding windows over NCHW arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray


def windows(
    x: NDArray,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
    fill: float,
) -> NDArray:
    """View of every window of a padded array.

    Parameters
    ----------
    x : ndarray [N, C, H, W]
    kernel, strides, dilation : (int, int)
        Along height and width.
    padding : (int, int, int, int)
        Top, left, bottom, right; grown after the data where `out_size` needs it (ceil mode).
    out_size : (int, int)
        Positions along height and width.
    fill : int or float
        Value of the padding.

    Returns
    -------
    ndarray [N, C, OH, OW, KH, KW]
        Read-only view.
    """
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads = [(0, 0), (0, 0)]
    for axis in (0, 1):
        need = (out_size[axis] - 1) * strides[axis] + spans[axis]
        before, after = padding[axis], padding[axis + 2]
        pads.append((before, max(after, need - x.shape[axis + 2] - before)))
    if any(a or b for a, b in pads):
        x = np.pad(x, pads, constant_values=fill)
    view = sliding_window_view(x, spans, axis=(2, 3))
    view = view[:, :, :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]
    return view[:, :, : out_size[0], : out_size[1]]


def window_counts(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
    include_pad: bool,
) -> NDArray[np.int64]:
    """Positions of each window that count: inside the input, or also in its padding.

    What ceil mode adds beyond the stated padding never counts (PyTorch's rule).

    Returns
    -------
    int64 ndarray [OH, OW]
    """
    per_axis = []
    for axis in (0, 1):
        starts = np.arange(out_size[axis])[:, None] * strides[axis] - padding[axis]
        taps = starts + np.arange(kernel[axis])[None, :] * dilation[axis]
        first = -padding[axis] if include_pad else 0
        last = size[axis] + (padding[axis + 2] if include_pad else 0)
        per_axis.append(((taps >= first) & (taps < last)).sum(axis=1))
    return np.multiply.outer(per_axis[0], per_axis[1]).astype(np.int64)
