"""Operators on integers that carry their quantization: QLinearConv and its family.

Each becomes dequantize, the float operator, quantize, which is what it is defined to compute
(ONNX, QLinearConv; ONNX Runtime, ContribOperators.md).
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_q4 import ops
from tvm_q4.frontend.common import elementwise, layers, pools, quantization, shapes
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.onnx_ops.elementwise import soft_maximum, with_constant
from tvm_q4.frontend.onnx_ops.layers import check_gemm, convolve
from tvm_q4.frontend.onnx_ops.pooling import average
from tvm_q4.frontend.onnx_ops.quantization import params, result_bounds
from tvm_q4.frontend.onnx_ops.registry import MICROSOFT, NodeView, converts, limits
from tvm_q4.quant import INT32_MAX, INT32_MIN


def _dequantized(
    imp: ImporterFace, node: NodeView, at: int, *, role: str | None = None, axis: int = 0
) -> Value:
    """Input `at` with the scale and zero point that follow it, as float."""
    x = node.tensor(at)
    if x.dtype not in ("int8", "uint8"):
        raise node.unsupported(f"input {at} has type {x.dtype}, expected int8 or uint8")
    p = params(node, x, at + 1, at + 2, (x.dtype, *limits(x)), axis)
    return quantization.dequantize(imp, node.role(role), x, p)


def _quantized(imp: ImporterFace, node: NodeView, x: Value, at: int) -> Value:
    """`x` with the result's scale at input `at` and its zero point behind it."""
    p = params(node, x, at, at + 1, result_bounds(node, at + 1), 1)
    return quantization.quantize(imp, node, x, p, form="divide")


def _bias(imp: ImporterFace, node: NodeView, at: int, x_at: int, w_at: int) -> Value | None:
    """The int32 bias at input `at` in the accumulator's units, ``s_x * s_w``, in float64."""
    bias = node.array(at)
    if bias is None:
        return None
    scales = [node.array(i + 1) for i in (x_at, w_at)]
    if bias.dtype != np.int32 or bias.ndim != 1 or any(s is None for s in scales):
        found = f"{bias.dtype} {list(bias.shape)}"
        raise node.unsupported(f"the bias is {found}, expected int32 [O]")
    scale = np.ravel(scales[0].astype("float64")) * np.ravel(scales[1].astype("float64"))
    if scale.size not in (1, bias.size):
        raise node.unsupported(f"{scale.size} scales do not fit a bias of {bias.size}")
    name = imp.unique(f"{node.label}.bias", ".dq")
    scale = float(scale[0]) if scale.size == 1 else scale
    zero = 0 if isinstance(scale, float) else np.zeros(bias.size, "int32")
    call = ops.dequantize(
        relax.const(bias, "int32"), scale, zero, name=name, qmin=INT32_MIN, qmax=INT32_MAX, axis=0
    )
    return Value(imp.emit(call, name), f"{node.label}.bias", True)


@converts("QLinearConv", domain=("", MICROSOFT))
def qlinear_conv(imp: ImporterFace, node: NodeView) -> Value:
    """Convolution: x, scale, zero, w, scale, zero, result's scale, zero, bias."""
    _check_channels_first(node)
    x = _dequantized(imp, node, 0)
    weight = _dequantized(imp, node, 3, role=f"{node.label}.weight")
    out = convolve(imp, node, x, weight, _bias(imp, node, 8, 0, 3))
    return _quantized(imp, node, out, 6)


@converts("QLinearMatMul", domain=("", MICROSOFT))
def qlinear_matmul(imp: ImporterFace, node: NodeView) -> Value:
    """Linear layer: a, scale, zero, b [I, O], scale, zero, result's scale, zero."""
    x = _dequantized(imp, node, 0)
    weight = _dequantized(imp, node, 3, role=f"{node.label}.weight", axis=1)
    _check_layer(node, x, weight)
    return _quantized(imp, node, layers.linear(imp, node, x, weight, None, transposed=False), 6)


@converts("QGemm", domain=MICROSOFT)
def qgemm(imp: ImporterFace, node: NodeView) -> Value:
    """Linear layer: a, scale, zero, b, scale, zero, bias, result's scale, zero; float without."""
    transposed = check_gemm(node)
    x = _dequantized(imp, node, 0)
    axis = 0 if transposed else 1
    weight = _dequantized(imp, node, 3, role=f"{node.label}.weight", axis=axis)
    _check_layer(node, x, weight)
    bias = _bias(imp, node, 6, 0, 3)
    out = layers.linear(imp, node, x, weight, bias, transposed=transposed)
    return out if node.optional(7) is None else _quantized(imp, node, out, 7)


def _check_layer(node: NodeView, x: Value, weight: Value) -> None:
    if len(x.shape) != 2 or not weight.constant:
        raise node.unsupported(
            f"only products of a matrix with a parameter are supported, found {x.shape} and "
            f"{weight.shape}"
        )


@converts("QLinearAdd", domain=MICROSOFT)
def qlinear_add(imp: ImporterFace, node: NodeView) -> Value:
    """The residual add: a, scale, zero, b, scale, zero, result's scale, zero."""
    lhs, rhs = _dequantized(imp, node, 0), _dequantized(imp, node, 3)
    if lhs.constant or rhs.constant:
        out = with_constant(imp, node, lhs, rhs, relax.op.add)
    else:
        out = elementwise.add(imp, node, lhs, rhs)
    return _quantized(imp, node, out, 6)


def _check_channels_first(node: NodeView) -> None:
    if node.integer("channels_last", 0):
        raise node.unsupported("channels_last is not supported; give the model before ONNX "
                               "Runtime's own optimizations")  # fmt: skip


@converts("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(imp: ImporterFace, node: NodeView) -> Value:
    """Mean over height and width: x, scale, zero, result's scale, zero."""
    _check_channels_first(node)
    out = pools.global_average(imp, node, _dequantized(imp, node, 0), keep=True)
    return _quantized(imp, node, out, 3)


@converts("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(imp: ImporterFace, node: NodeView) -> Value:
    """Average pool: x, scale, zero, result's scale, zero."""
    _check_channels_first(node)
    return _quantized(imp, node, average(imp, node, _dequantized(imp, node, 0)), 3)


@converts("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(imp: ImporterFace, node: NodeView) -> Value:
    """Concat: result's scale and zero, then tensor, scale, zero of each branch."""
    if len(node.inputs) < 5 or len(node.inputs) % 3 != 2:
        raise node.unsupported(f"{len(node.inputs)} inputs are not a result and its branches")
    parts = [_dequantized(imp, node, i) for i in range(2, len(node.inputs), 3)]
    out = shapes.concatenated(imp, node, parts, node.integer("axis"))
    return _quantized(imp, node, out, 0)


@converts("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(imp: ImporterFace, node: NodeView) -> Value:
    """Softmax, which stays float: x, scale, zero, result's scale, zero."""
    x = _dequantized(imp, node, 0)
    return _quantized(imp, node, soft_maximum(imp, node, x, node.integer("opset", 13)), 3)
