"""Relax operators that only move values, for any element type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_q4.errors import UnsupportedError
from tvm_q4.ops import ints


def reshape(call: relax.Call, x: NDArray, _shape: Any = None) -> NDArray:
    """Also flatten, squeeze and expand_dims: the inferred type states the shape."""
    return x.reshape([int(d) for d in call.ty.shape])


def permute_dims(call: relax.Call, x: NDArray) -> NDArray:
    """Transpose; without axes, reversed."""
    return np.transpose(x, None if call.attrs.axes is None else ints(call.attrs.axes))


def strided_slice(
    _call: relax.Call,
    x: NDArray,
    axes: tuple,
    begin: tuple,
    end: tuple,
    strides: tuple | None = None,
) -> NDArray:
    """Slice with positive strides; negative bounds count from the end."""
    steps = strides or (1,) * len(axes)
    if min(steps) < 1:
        msg = (
            f"relax.strided_slice: strides {list(steps)} are not positive; flip the weights instead"
        )
        raise UnsupportedError(msg)
    index = [slice(None)] * x.ndim
    for axis, b, e, s in zip(axes, begin, end, steps, strict=True):
        index[axis] = slice(b, e, s)
    return x[tuple(index)]


def pad(call: relax.Call, x: NDArray, value: Any = None) -> NDArray:
    """Constant padding; the widths are (before, after) of each axis in turn."""
    if call.attrs.pad_mode != "constant":
        msg = f"relax.nn.pad: mode {call.attrs.pad_mode!s} is not supported; only constant is"
        raise UnsupportedError(msg)
    width = ints(call.attrs.pad_width)
    fill = call.attrs.pad_value if value is None else value
    return np.pad(
        x, list(zip(width[::2], width[1::2], strict=True)), constant_values=x.dtype.type(fill)
    )


def concat(call: relax.Call, tensors: tuple[NDArray, ...]) -> NDArray:
    """Join along an axis; without one, flattened."""
    axis = call.attrs.axis
    return np.concatenate(tensors, axis=None if axis is None else int(axis))


MOVEMENT_OPS: dict[str, Callable[..., Any]] = {
    "relax.reshape": reshape,
    "relax.flatten": reshape,
    "relax.squeeze": reshape,
    "relax.expand_dims": reshape,
    "relax.permute_dims": permute_dims,
    "relax.strided_slice": strided_slice,
    "relax.nn.pad": pad,
    "relax.concat": concat,
}
