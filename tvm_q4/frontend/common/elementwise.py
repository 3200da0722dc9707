"""Activations and the residual add."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_q4.frontend.common.values import ImporterFace, NodeFace, Value

_FLOAT_MAX = float(np.finfo(np.float32).max)


def clip(
    imp: ImporterFace, node: NodeFace, x: Value, low: float | None, high: float | None
) -> Value:
    """Clip to bounds, either of which may be open; the tensor keeps its producer's name."""
    if low == 0 and high is None:
        return Value(imp.emit(relax.op.nn.relu(x.expr), node.label), x.base)
    bounds = [
        -_FLOAT_MAX if low is None else float(low),
        _FLOAT_MAX if high is None else float(high),
    ]
    return Value(imp.emit(relax.op.clip(x.expr, *bounds), node.label), x.base)


def add(imp: ImporterFace, node: NodeFace, lhs: Value, rhs: Value) -> Value:
    """Sum of two tensors of one shape (the residual add)."""
    if lhs.shape != rhs.shape:
        raise node.unsupported(
            f"the operands have shapes {lhs.shape} and {rhs.shape}; they must be equal"
        )
    return Value(imp.emit(relax.op.add(lhs.expr, rhs.expr), node.label), node.label)
