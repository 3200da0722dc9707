"""Small modules for tests, and plain-Python definitions to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

Build = Callable[[relax.BlockBuilder, relax.Var], relax.Expr]


def module(shape: Sequence[int], dtype: str, build: Build) -> tvm.IRModule:
    """Module whose ``main(x)`` returns what `build` makes of x inside one dataflow block."""
    x = relax.Var("x", relax.TensorType(list(shape), dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(build(builder, x))
        builder.emit_func_output(result)
    return builder.get()


def full_range(rng: np.random.Generator, dtype: str, shape: Sequence[int]) -> NDArray:
    """Integers over the whole type; both extremes occur."""
    limits = np.iinfo(dtype)
    out = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    out.flat[0], out.flat[-1] = limits.min, limits.max
    return out


def window_positions(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool = False,
) -> tuple[int, int]:
    """Output size by trying positions one after another (PyTorch's rule in ceil mode)."""
    out = []
    for i in (0, 1):
        count = 0
        while True:
            start = count * strides[i] - padding[i]
            last = start + dilation[i] * (kernel[i] - 1)
            inside = last < size[i] + padding[i + 2]
            begun = ceil and start < size[i] and last - strides[i] < size[i] + padding[i + 2] - 1
            if not inside and not begun:
                break
            count += 1
        out.append(count)
    return out[0], out[1]


def taps(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    at: tuple[int, int],
) -> Iterator[tuple[int, int, int, int]]:
    """(kernel row, kernel column, input row, input column) of one window, padding included."""
    for i, j in product(range(kernel[0]), range(kernel[1])):
        row = at[0] * strides[0] - padding[0] + i * dilation[0]
        column = at[1] * strides[1] - padding[1] + j * dilation[1]
        yield i, j, row, column


def naive_conv2d(
    x: NDArray,
    w: NDArray,
    bias: NDArray,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    fill: int,
) -> NDArray[np.int64]:
    """Convolution by loops over Python integers."""
    h, wd = x.shape[2:]
    o, ci, kh, kw = w.shape
    geometry = ((h, wd), (kh, kw), strides, padding, dilation)
    oh, ow = window_positions(*geometry)
    out = np.empty((x.shape[0], o, oh, ow), np.int64)
    for n, k, r, c in product(range(x.shape[0]), range(o), range(oh), range(ow)):
        total = int(bias[k])
        first = k // (o // groups) * ci
        for i, j, row, column in taps(*geometry, at=(r, c)):
            inside = 0 <= row < h and 0 <= column < wd
            for q in range(ci):
                value = int(x[n, first + q, row, column]) if inside else fill
                total += value * int(w[k, q, i, j])
        out[n, k, r, c] = total
    return out
