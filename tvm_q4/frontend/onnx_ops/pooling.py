"""Pools; maxima also on integers, where no scale matters."""

from __future__ import annotations

from tvm_q4.frontend.common import pools, quantization
from tvm_q4.frontend.common.pools import Windows
from tvm_q4.frontend.common.quantization import QuantParams
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.onnx_ops.elementwise import floats
from tvm_q4.frontend.onnx_ops.registry import NodeView, axis_of, converts, limits
from tvm_q4.frontend.onnx_ops.windows import explicit_padding, positives


def windows_of(node: NodeView, x: Value) -> Windows:
    """Windows that a pool's attributes state."""
    if len(x.shape) != 4:
        raise node.unsupported(f"only 2-D pools of [N, C, H, W] are supported, found {x.shape}")
    if "kernel_shape" not in node.attrs:
        raise node.unsupported("attribute 'kernel_shape' is missing")
    kernel = positives(node, "kernel_shape")
    strides, dilation = positives(node, "strides"), positives(node, "dilations")
    beyond = any(t > k for t, k in zip(strides, kernel, strict=True))
    if beyond and node.text("auto_pad", "NOTSET").startswith("SAME"):
        raise node.unsupported(
            f"auto_pad with strides {strides} beyond the window {kernel} would drop pixels in some "
            "runtimes; state the pads"
        )
    padding = explicit_padding(node, x.shape[2:], kernel, strides, dilation)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(p >= r for p, r in zip(padding, reach * 2, strict=True)):
        raise node.unsupported(
            f"padding {padding} reaches the size of the window {reach}; it must be smaller"
        )
    return Windows(kernel, strides, padding, dilation, bool(node.integer("ceil_mode", 0)))


@converts("MaxPool")
def max_pool(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.max_pool2d``."""
    x = node.tensor(0)
    w = windows_of(node, x)
    if x.dtype == "float32":
        return pools.max_pool(imp, node, x, w)
    return _on_integers(imp, node, x, w)


@converts("GlobalMaxPool")
def global_max_pool(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.max_pool2d`` with one window."""
    x = floats(node, 0)
    if len(x.shape) != 4:
        raise node.unsupported(f"only 2-D pools of [N, C, H, W] are supported, found {x.shape}")
    return pools.max_pool(imp, node, x, Windows(x.shape[2:], [1, 1], [0] * 4, [1, 1], False))


def _on_integers(imp: ImporterFace, node: NodeView, x: Value, w: Windows) -> Value:
    """Maxima of integers: as those of the numbers themselves, between quantizers of scale 1."""
    if x.dtype not in quantization.CONTAINERS:
        raise node.unsupported(f"the input has type {x.dtype}, which is not supported")
    unit = QuantParams(
        (1.0,), (min(max(0, limits(x)[0]), limits(x)[1]),), *limits(x), x.dtype, 1, False
    )
    pooled = pools.max_pool(imp, node, quantization.dequantize(imp, node, x, unit), w)
    return quantization.quantize(imp, node, pooled, unit)


def average(imp: ImporterFace, node: NodeView, x: Value) -> Value:
    """An average pool with the windows that the node's attributes state."""
    w = windows_of(node, x)
    if w.dilation != [1, 1]:
        raise node.unsupported(f"dilations {w.dilation} of an average pool are not supported")
    include = bool(node.integer("count_include_pad", 0))
    return pools.average_pool(imp, node, x, w, include_pad=include)


@converts("AveragePool")
def average_pool(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.avg_pool2d``."""
    return average(imp, node, floats(node, 0))


@converts("GlobalAveragePool")
def global_average_pool(imp: ImporterFace, node: NodeView) -> Value:
    """Mean over height and width."""
    return pools.global_average(imp, node, floats(node, 0), keep=True)


@converts("ReduceMean")
def reduce_mean(imp: ImporterFace, node: NodeView) -> Value:
    """Mean over height and width."""
    x = floats(node, 0)
    axes = node.optional_integers("axes")
    axes = node.integers_of(1) if axes is None else axes
    rank = len(x.shape)
    if rank != 4 or sorted(axis_of(node, a, rank) for a in axes or []) != [2, 3]:
        raise node.unsupported(f"a mean over {axes} of {x.shape} is not supported, only over 2, 3")
    return pools.global_average(imp, node, x, keep=bool(node.integer("keepdims", 1)))
