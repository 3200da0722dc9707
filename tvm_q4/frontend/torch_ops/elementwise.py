"""Activations, the residual add, and operators that change nothing in inference."""

from __future__ import annotations

from tvm_q4.frontend.common import elementwise
from tvm_q4.frontend.common.elementwise import clip
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.torch_ops.registry import NodeView, converts


@converts("aten.relu.default", "aten.relu_.default")
def relu(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.relu``; the tensor keeps its producer's name."""
    return clip(imp, node, node.tensor("self"), 0, None)


@converts("aten.relu6.default", "aten.relu6_.default")
def relu6(imp: ImporterFace, node: NodeView) -> Value:
    """Clip to 0..6."""
    return clip(imp, node, node.tensor("self"), 0.0, 6.0)


@converts("aten.hardtanh.default", "aten.hardtanh_.default")
def hardtanh(imp: ImporterFace, node: NodeView) -> Value:
    """Clip to the recorded bounds."""
    return clip(imp, node, node.tensor("self"), node["min_val"], node["max_val"])


@converts(
    "aten.clamp.default", "aten.clamp_.default", "aten.clamp_min.default", "aten.clamp_min_.default"
)
def clamp(imp: ImporterFace, node: NodeView) -> Value:
    """Clip to the recorded bounds, either of which may be open."""
    return clip(imp, node, node.tensor("self"), node["min"], node.args.get("max"))


@converts("aten.add.Tensor", "aten.add_.Tensor")
def add(imp: ImporterFace, node: NodeView) -> Value:
    """Sum of two tensors (the residual add)."""
    lhs, rhs = node["self"], node["other"]
    if node["alpha"] != 1:
        raise node.unsupported(f"an add with alpha {node['alpha']} is not supported, only 1")
    if not isinstance(rhs, Value) or not isinstance(lhs, Value):
        raise node.unsupported("adding a number to a tensor is not supported")
    return elementwise.add(imp, node, lhs, rhs)


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
