"""Activations, the residual add, and operators that change nothing in inference."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.torch_ops.registry import NodeView, converts

_FLOAT_MAX = float(np.finfo(np.float32).max)


@converts("aten.relu.default", "aten.relu_.default")
def relu(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.relu``; the tensor keeps its producer's name."""
    x = node.tensor("self")
    return Value(imp.emit(relax.op.nn.relu(x.expr), node.label), x.base)


def _clip(imp: ImporterFace, node: NodeView, low: float | None, high: float | None) -> Value:
    x = node.tensor("self")
    if low == 0 and high is None:
        return relu(imp, node)
    bounds = [
        -_FLOAT_MAX if low is None else float(low),
        _FLOAT_MAX if high is None else float(high),
    ]
    return Value(imp.emit(relax.op.clip(x.expr, *bounds), node.label), x.base)


@converts("aten.relu6.default", "aten.relu6_.default")
def relu6(imp: ImporterFace, node: NodeView) -> Value:
    """Clip to 0..6."""
    return _clip(imp, node, 0.0, 6.0)


@converts("aten.hardtanh.default", "aten.hardtanh_.default")
def hardtanh(imp: ImporterFace, node: NodeView) -> Value:
    """Clip to the recorded bounds."""
    return _clip(imp, node, node["min_val"], node["max_val"])


@converts(
    "aten.clamp.default", "aten.clamp_.default", "aten.clamp_min.default", "aten.clamp_min_.default"
)
def clamp(imp: ImporterFace, node: NodeView) -> Value:
    """Clip to the recorded bounds, either of which may be open."""
    return _clip(imp, node, node["min"], node.args.get("max"))


@converts("aten.add.Tensor", "aten.add_.Tensor")
def add(imp: ImporterFace, node: NodeView) -> Value:
    """Sum of two tensors (the residual add)."""
    lhs, rhs = node["self"], node["other"]
    if node["alpha"] != 1:
        raise node.unsupported(f"an add with alpha {node['alpha']} is not supported, only 1")
    if not isinstance(rhs, Value) or not isinstance(lhs, Value):
        raise node.unsupported("adding a number to a tensor is not supported")
    if lhs.shape != rhs.shape:
        raise node.unsupported(
            f"the operands have shapes {lhs.shape} and {rhs.shape}; they must be equal"
        )
    return Value(imp.emit(relax.op.add(lhs.expr, rhs.expr), node.label), node.label)


@converts(
    "aten.contiguous.default", "aten.clone.default", "aten.alias.default", "aten.detach.default",
    "aten.detach_.default", "aten.lift_fresh_copy.default",
)  # fmt: skip
def identity(_imp: ImporterFace, node: NodeView) -> Value:
    """The same tensor."""
    return node.tensor("self")


@converts("aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout", "aten.to.device")
def to_copy(_imp: ImporterFace, node: NodeView) -> Value:
    """The same tensor where the copy keeps its element type."""
    x, dtype = node.tensor("self"), node.args.get("dtype")
    if dtype is not None and str(dtype).removeprefix("torch.") != x.dtype:
        raise node.unsupported(f"a conversion from {x.dtype} to {dtype} is not supported")
    return x


@converts("aten.dropout.default", "aten.dropout_.default", "aten.feature_dropout.default")
def dropout(_imp: ImporterFace, node: NodeView) -> Value:
    """The same tensor (dropout in training mode is refused before)."""
    return node.tensor("input" if "input" in node.args else "self")
