"""Batch normalisation in inference, where the exporter has not folded it."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_q4.frontend.common import layers
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.torch_ops.registry import NodeView, converts


def _affine(node: NodeView, name: str, channels: int, default: float) -> relax.Expr:
    value = node[name]
    return relax.const(np.full(channels, default, "float32")) if value is None else value.expr


def _batch_norm(imp: ImporterFace, node: NodeView, eps: float) -> Value:
    x = node.tensor("input")
    if node["running_mean"] is None or node["running_var"] is None:
        raise node.unsupported("batch norm without running statistics is not supported")
    channels = x.shape[1]
    parameters = [
        _affine(node, "weight", channels, 1.0), _affine(node, "bias", channels, 0.0),
        node["running_mean"].expr, node["running_var"].expr,
    ]  # fmt: skip
    return layers.batch_norm(imp, node, x, parameters, float(eps))


@converts("aten.batch_norm.default")
def batch_norm(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.batch_norm`` with running statistics; the tensor keeps its producer's name."""
    return _batch_norm(imp, node, node["eps"])


@converts(
    "aten._native_batch_norm_legit_no_training.default", "aten._native_batch_norm_legit.default"
)
def native_batch_norm(imp: ImporterFace, node: NodeView) -> tuple[Value, ...]:
    """As `batch_norm`; the decomposed operator returns a tuple of which only item 0 is used."""
    return (_batch_norm(imp, node, node["eps"]),)
