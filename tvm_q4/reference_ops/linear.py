"""Integer convolution and matrix product through floating-point BLAS, exactly.

A float accumulates integers without rounding while every partial sum stays at or below 2**24
(float32) or 2**53 (float64); ``sum_k |w| * max|x|`` bounds all partial sums in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tvm_q4.ops import pool_output
from tvm_q4.reference_ops.windows import windows

_FLOAT32_EXACT = 1 << 24
_CHUNK = 1 << 24


def _magnitude(x: NDArray) -> int:
    return max(abs(int(x.min())), abs(int(x.max()))) if x.size else 0


def exact_dtype(x: NDArray, weight: NDArray, fill: int = 0) -> type[np.floating]:
    """Narrowest float type in which ``weight`` (rows of products) times `x` is exact."""
    rows = np.abs(weight.astype(np.int32)).reshape(weight.shape[0], -1).sum(axis=1, dtype=np.int64)
    bound = int(rows.max(initial=0)) * max(_magnitude(x), abs(fill))
    assert bound < 1 << 53, "int8 weights and int16 data cannot reach 2**53"
    return np.float32 if bound < _FLOAT32_EXACT else np.float64


def int_matmul(x: NDArray, weight: NDArray) -> NDArray[np.floating]:
    """``x @ weight.T`` of integer arrays [N, I] and [O, I]; exact integers in a float array."""
    dtype = exact_dtype(x, weight)
    return x.astype(dtype) @ weight.astype(dtype).T


def int_conv2d(
    x: NDArray,
    weight: NDArray,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    fill: int,
) -> NDArray[np.floating]:
    """Cross-correlation of integer arrays; exact integers in a float array [N, O, OH, OW]."""
    return conv2d(x, weight, strides, padding, dilation, groups, fill, exact_dtype(x, weight, fill))


def conv2d(
    x: NDArray,
    weight: NDArray,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    fill: int,
    dtype: type[np.floating],
) -> NDArray[np.floating]:
    """Cross-correlation in `dtype`: NCHW data, OIHW weights; padding top, left, bottom, right."""
    o, i, kh, kw = weight.shape
    oh, ow = pool_output(x.shape[2:], (kh, kw), strides, padding, dilation)
    rows = weight.astype(dtype).reshape(groups, o // groups, i * kh * kw)
    out = np.empty((x.shape[0], o, oh, ow), dtype)
    step = max(1, _CHUNK // max(1, groups * i * kh * kw * oh * ow))
    for n in range(0, x.shape[0], step):
        part = x[n : n + step].astype(dtype)
        view = windows(part, (kh, kw), strides, padding, dilation, (oh, ow), fill)
        columns = view.transpose(0, 1, 4, 5, 2, 3).reshape(len(part), groups, i * kh * kw, oh * ow)
        np.matmul(
            rows, columns, out=out[n : n + step].reshape(len(part), groups, o // groups, oh * ow)
        )
    return out
