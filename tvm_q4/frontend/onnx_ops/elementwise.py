"""Activations, sums, arithmetic with parameters, and operators that change nothing in inference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from tvm import relax

from tvm_q4.frontend.common import elementwise
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.onnx_ops.quantization import clip_integers
from tvm_q4.frontend.onnx_ops.registry import NodeView, axis_of, converts


def floats(node: NodeView, index: int) -> Value:
    """Input `index`, which must be float32."""
    x = node.tensor(index)
    if x.dtype != "float32":
        raise node.unsupported(f"input {index} has type {x.dtype}, expected float32")
    return x


@converts("Relu")
def relu(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.relu``; the tensor keeps its producer's name."""
    return elementwise.clip(imp, node, floats(node, 0), 0, None)


@converts("Clip")
def clip(imp: ImporterFace, node: NodeView) -> Value:
    """Clip to bounds, on floats or on the integers between a quantizer and its dequantizer."""
    bounds = [_bound(node, i, name) for i, name in ((1, "min"), (2, "max"))]
    x = node.tensor(0)
    if x.dtype != "float32":
        low, high = (None if b is None else int(b) for b in bounds)
        return clip_integers(node, x, low, high)
    limits = [None if b is None or abs(b) >= np.finfo(np.float32).max else b for b in bounds]
    return elementwise.clip(imp, node, x, *limits)


def _bound(node: NodeView, index: int, name: str) -> float | None:
    """A bound: an input, or before opset 11 an attribute; None where it is open."""
    if name in node.attrs:
        return node.number(name)
    array = node.array(index)
    if array is None:
        return None
    if array.size != 1 or np.isnan(array.astype("float64")).any():
        raise node.unsupported(f"the bound '{name}' is {array.tolist()!r:.60}, expected a number")
    return array.item()


@converts("Add", "Sum")
def add(imp: ImporterFace, node: NodeView) -> Value:
    """The residual add of two tensors, or the bias of the layer before it."""
    if len(node.inputs) != 2:
        raise node.unsupported(f"a sum of {len(node.inputs)} tensors is not supported, only of 2")
    lhs, rhs = floats(node, 0), floats(node, 1)
    if lhs.constant or rhs.constant:
        return with_constant(imp, node, lhs, rhs, relax.op.add)
    return elementwise.add(imp, node, lhs, rhs)


def with_constant(
    imp: ImporterFace,
    node: NodeView,
    lhs: Value,
    rhs: Value,
    build: Callable[[relax.Expr, relax.Expr], relax.Expr],
) -> Value:
    """A binary operator with a parameter that has the tensor's shape or broadcasts to it."""
    shape = (lhs if rhs.constant else rhs).shape
    if list(np.broadcast_shapes(lhs.shape, rhs.shape)) != shape:
        raise node.unsupported(
            f"a parameter of shape {(rhs if rhs.constant else lhs).shape} does not fit a tensor of "
            f"shape {shape}"
        )
    return Value(imp.emit(build(lhs.expr, rhs.expr), node.label), f"{node.label}.out")


def _arithmetic(name: str, build: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> None:
    @converts(name)
    def convert(imp: ImporterFace, node: NodeView) -> Value:
        lhs, rhs = floats(node, 0), floats(node, 1)
        if not (lhs.constant or rhs.constant):
            raise node.unsupported("only arithmetic with a parameter is supported")
        return with_constant(imp, node, lhs, rhs, build)


for _name, _build in (
    ("Mul", relax.op.multiply), ("Sub", relax.op.subtract), ("Div", relax.op.divide),
):  # fmt: skip
    _arithmetic(_name, _build)


@converts("Softmax")
def softmax(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.softmax``, which stays float."""
    return soft_maximum(imp, node, floats(node, 0), node.opset)


def soft_maximum(imp: ImporterFace, node: NodeView, x: Value, opset: int) -> Value:
    """Softmax along the node's axis, as the given version of the operator defines it."""
    axis = axis_of(node, node.integer("axis", 1 if opset < 13 else -1), len(x.shape))
    if opset < 13 and axis != len(x.shape) - 1:
        raise node.unsupported(
            f"before opset 13, a softmax from axis {axis} of {x.shape} spans several dimensions; "
            "convert the model to a newer opset"
        )
    return Value(imp.emit(relax.op.nn.softmax(x.expr, axis), node.label), f"{node.label}.out")


@converts("Identity")
def identity(_imp: ImporterFace, node: NodeView) -> Value:
    """The same tensor."""
    return node.tensor(0)


@converts("Dropout")
def dropout(_imp: ImporterFace, node: NodeView) -> Value:
    """The same tensor; training mode is refused."""
    training = node.array(2)
    if training is not None and training.any():
        raise node.unsupported("it is in training mode; export the model for inference")
    return node.tensor(0)


@converts("Cast")
def cast(_imp: ImporterFace, node: NodeView) -> Value:
    """The same tensor where its type stays."""
    x, wanted = node.tensor(0), node.integer("to")
    if wanted not in onnx.TensorProto.DataType.values():
        raise node.unsupported(f"type {wanted} is unknown")
    if str(onnx.helper.tensor_dtype_to_np_dtype(wanted)) != x.dtype:
        kind = onnx.TensorProto.DataType.Name(wanted)
        raise node.unsupported(f"a conversion from {x.dtype} to {kind} is not supported")
    return x
