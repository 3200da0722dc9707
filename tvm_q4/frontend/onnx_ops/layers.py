"""Conv, Gemm, MatMul and BatchNormalization."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_q4._compat import GenericConst
from tvm_q4.frontend.common import layers
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.onnx_ops.elementwise import floats
from tvm_q4.frontend.onnx_ops.registry import NodeView, converts
from tvm_q4.frontend.onnx_ops.windows import explicit_padding, positives


def convolve(
    imp: ImporterFace, node: NodeView, x: Value, weight: Value, bias: Value | None
) -> Value:
    """A convolution with the windows that the node's attributes state."""
    kernel = weight.shape[2:]
    stated = node.optional_integers("kernel_shape")
    if stated is not None and stated != kernel:
        raise node.unsupported(f"kernel_shape {stated} differs from the weight's {weight.shape}")
    if len(x.shape) != 4 or len(kernel) != 2:
        raise node.unsupported(
            f"only 2-D convolutions are supported, found input {x.shape}, weight {weight.shape}"
        )
    if bias is not None and bias.shape != [weight.shape[0]]:
        raise node.unsupported(f"the bias {bias.shape} does not fit the weight {weight.shape}")
    strides, dilation = positives(node, "strides"), positives(node, "dilations")
    groups = node.integer("group", 1)
    if groups < 1:
        raise node.unsupported(f"group {groups} is not positive")
    padding = explicit_padding(node, x.shape[2:], kernel, strides, dilation)
    return layers.conv2d(
        imp, node, x, weight, bias, strides=strides, padding=padding, dilation=dilation,
        groups=groups,
    )  # fmt: skip


@converts("Conv")
def conv(imp: ImporterFace, node: NodeView) -> Value:
    """As `common.layers.conv2d`."""
    bias = None if node.optional(2) is None else floats(node, 2)
    return convolve(imp, node, floats(node, 0), floats(node, 1), bias)


def check_gemm(node: NodeView) -> bool:
    """Refuse what is no linear layer; whether the weight is [O, I]."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    if alpha != 1 or beta != 1 or node.integer("transA", 0):
        raise node.unsupported(
            f"alpha {alpha}, beta {beta}, transA {node.integer('transA', 0)}; only 1, 1 and 0 are "
            "a linear layer"
        )
    return bool(node.integer("transB", 0))


@converts("Gemm")
def gemm(imp: ImporterFace, node: NodeView) -> Value:
    """A linear layer."""
    transposed = check_gemm(node)
    bias = None if node.optional(2) is None else floats(node, 2)
    x, weight = floats(node, 0), floats(node, 1)
    _check_matrix(node, x, weight)
    return layers.linear(imp, node, x, weight, bias, transposed=transposed)


@converts("MatMul")
def matmul(imp: ImporterFace, node: NodeView) -> Value:
    """A linear layer without bias."""
    x, weight = floats(node, 0), floats(node, 1)
    _check_matrix(node, x, weight)
    return layers.linear(imp, node, x, weight, None, transposed=False)


def _check_matrix(node: NodeView, x: Value, weight: Value) -> None:
    if len(x.shape) != 2 or not weight.constant:
        raise node.unsupported(
            f"only products of a matrix with a parameter are supported, found {x.shape} and "
            f"{weight.shape}"
        )


@converts("BatchNormalization")
def batch_normalization(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.batch_norm`` with running statistics."""
    if node.integer("training_mode", 0):
        raise node.unsupported("it is in training mode; export the model for inference")
    x = floats(node, 0)
    parameters = [floats(node, i) for i in range(1, 5)]
    channels = x.shape[1] if len(x.shape) > 1 else 0
    bad = next((p for p in parameters if p.shape != [channels]), None)
    if bad is not None or any(not isinstance(p.expr, GenericConst) for p in parameters):
        raise node.unsupported(f"its parameters must be constants of shape [{channels}]")
    epsilon = float(np.float32(node.number("epsilon", 1e-5)))
    exprs: list[relax.Expr] = [p.expr for p in parameters]
    return layers.batch_norm(imp, node, x, exprs, epsilon)
