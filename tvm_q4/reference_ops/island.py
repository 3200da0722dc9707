"""Float32 operators of a float island (and of a whole stage-1 module), in inference form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_q4.errors import UnsupportedError
from tvm_q4.ops import ints, pool_output
from tvm_q4.reference_ops.linear import conv2d as plain_conv2d
from tvm_q4.reference_ops.windows import window_counts, windows

Float = NDArray[np.float32]


def _layout(call: relax.Call, **expected: str) -> None:
    for key, layout in expected.items():
        found = str(getattr(call.attrs, key))
        if found not in (layout, ""):
            msg = f"{call.op.name}: {key} {found} is not supported; convert the module to {layout}"
            raise UnsupportedError(msg)


def conv2d(call: relax.Call, x: Float, weight: Float) -> Float:
    """Convolution without bias, NCHW and OIHW."""
    _layout(call, data_layout="NCHW", kernel_layout="OIHW", out_layout="NCHW")
    a = call.attrs
    return plain_conv2d(
        x, weight, ints(a.strides), ints(a.padding), ints(a.dilation), int(a.groups), 0, np.float32
    )


def _pool_geometry(call: relax.Call, x: Float) -> tuple[Any, ...]:
    _layout(call, layout="NCHW", out_layout="NCHW")
    a = call.attrs
    kernel, strides, padding, dilation = (
        ints(v) for v in (a.pool_size, a.strides, a.padding, a.dilation)
    )
    out = pool_output(
        x.shape[2:], kernel, strides, padding, dilation, bool(a.ceil_mode), call.op.name
    )
    if list(out) != [int(d) for d in call.ty.shape][2:]:
        msg = (
            f"{call.op.name}: ceil mode makes {list(out)} positions, but the module's type "
            f"has {call.ty.shape}"
        )
        raise UnsupportedError(msg)
    return kernel, strides, padding, dilation, out


def max_pool2d(call: relax.Call, x: Float) -> Float:
    """Maximum of each window."""
    return windows(x, *_pool_geometry(call, x), fill=-np.inf).max(axis=(4, 5))


def avg_pool2d(call: relax.Call, x: Float) -> Float:
    """Mean of each window over the positions that count (PyTorch's rule in ceil mode)."""
    geometry = _pool_geometry(call, x)
    count = window_counts(x.shape[2:], *geometry, include_pad=bool(call.attrs.count_include_pad))
    return windows(x, *geometry, fill=0).sum(axis=(4, 5)) / count.astype(np.float32)


def adaptive_avg_pool2d(call: relax.Call, x: Float) -> Float:
    """Mean over bins ``[floor(i n / o), ceil((i + 1) n / o))``."""
    _layout(call, layout="NCHW", out_layout="NCHW")
    oh, ow = [int(d) for d in call.ty.shape][2:]
    h, w = x.shape[2:]
    out = np.empty((*x.shape[:2], oh, ow), np.float32)
    for i in range(oh):
        for j in range(ow):
            rows = slice(i * h // oh, -(-(i + 1) * h // oh))
            out[:, :, i, j] = x[:, :, rows, j * w // ow : -(-(j + 1) * w // ow)].mean(axis=(2, 3))
    return out


def mean(call: relax.Call, x: Float) -> Float:
    """Mean over axes."""
    axis = None if call.attrs.axis is None else tuple(ints(call.attrs.axis))
    return np.asarray(x.mean(axis=axis, keepdims=bool(call.attrs.keepdims)), np.float32)


def batch_norm(
    call: relax.Call, x: Float, gamma: Float, beta: Float, moving_mean: Float, moving_var: Float
) -> tuple[Float, Float, Float]:
    """Inference form; returns the result and both statistics unchanged."""
    a = call.attrs
    if bool(a.training):
        msg = (
            "relax.nn.batch_norm: the module holds a training-mode batch norm; export the "
            "model in eval mode"
        )
        raise UnsupportedError(msg)
    shape = [1] * x.ndim
    shape[int(a.axis)] = -1
    factor = np.float32(1) / np.sqrt(moving_var + np.float32(a.epsilon))
    if bool(a.scale):
        factor = factor * gamma
    y = (x - moving_mean.reshape(shape)) * factor.reshape(shape)
    return (y + beta.reshape(shape) if bool(a.center) else y), moving_mean, moving_var


def softmax(call: relax.Call, x: Float) -> Float:
    """Softmax along an axis, shifted by the maximum."""
    axis = int(call.attrs.axis)
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def clip(_call: relax.Call, x: Float, low: float, high: float) -> Float:
    """Clamp to two numbers."""
    return np.clip(x, np.float32(low), np.float32(high))


ISLAND_OPS: dict[str, Callable[..., Any]] = {
    "relax.nn.conv2d": conv2d,
    "relax.nn.max_pool2d": max_pool2d,
    "relax.nn.avg_pool2d": avg_pool2d,
    "relax.nn.adaptive_avg_pool2d": adaptive_avg_pool2d,
    "relax.nn.batch_norm": batch_norm,
    "relax.nn.softmax": softmax,
    "relax.nn.relu": lambda _call, x: np.maximum(x, np.float32(0)),
    "relax.matmul": lambda _call, a, b: a @ b,
    "relax.add": lambda _call, a, b: a + b,
    "relax.subtract": lambda _call, a, b: a - b,
    "relax.multiply": lambda _call, a, b: a * b,
    "relax.divide": lambda _call, a, b: a / b,
    "relax.maximum": lambda _call, a, b: np.maximum(a, b),
    "relax.minimum": lambda _call, a, b: np.minimum(a, b),
    "relax.clip": clip,
    "relax.mean": mean,
}
