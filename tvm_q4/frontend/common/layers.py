"""Convolutions, linear layers and batch norms, the bias of a layer as a separate add."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax

from tvm_q4.frontend.common.values import ImporterFace, NodeFace, Value, positive
from tvm_q4.ops import pooled_size


def conv2d(
    imp: ImporterFace,
    node: NodeFace,
    x: Value,
    weight: Value,
    bias: Value | None,
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Value:
    """``relax.nn.conv2d`` NCHW/OIHW, then the bias reshaped to [1, O, 1, 1] and added.

    `padding` is (top, left, bottom, right).
    """
    if len(x.shape) != 4 or len(weight.shape) != 4:
        raise node.unsupported(
            f"only 2-D convolutions of [N, C, H, W] are supported, found input {x.shape}"
        )
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise node.unsupported(
            f"input {x.shape} does not fit weight {weight.shape} in {groups} group(s)"
        )
    kernel = weight.shape[2:]
    sizes = [
        pooled_size(
            x.shape[2 + i], kernel[i], strides[i], padding[i] + padding[i + 2], dilation[i], False
        )
        for i in (0, 1)
    ]
    positive(sizes, node)
    call = relax.op.nn.conv2d(
        x.expr, weight.expr, list(strides), list(padding), list(dilation), groups
    )
    out = imp.emit(call, node.label)
    if bias is not None:
        shaped = imp.emit(
            relax.op.reshape(bias.expr, [1, weight.shape[0], 1, 1]), f"{node.label}.bias"
        )
        out = imp.emit(relax.op.add(out, shaped), node.label)
    return Value(out, f"{node.label}.out")


def linear(
    imp: ImporterFace,
    node: NodeFace,
    x: Value,
    weight: Value,
    bias: Value | None,
    *,
    transposed: bool,
) -> Value:
    """``matmul(x, weight) + bias``; a `transposed` weight is [O, I], as in ``relax.op.linear``."""
    if len(weight.shape) != 2:
        raise node.unsupported(f"only products with a matrix are supported, found {weight.shape}")
    features = weight.shape[1 if transposed else 0]
    if x.shape[-1] != features:
        msg = (
            f"the layer takes {features} features and is given {x.shape[-1]}; the model does not "
            "work at this image size, leave --image-size out or change it"
        )
        raise node.unsupported(msg)
    matrix = weight.expr
    if transposed:
        matrix = imp.emit(relax.op.permute_dims(matrix), f"{node.label}.weight.t")
    out = imp.emit(relax.op.matmul(x.expr, matrix), node.label)
    if bias is not None:
        out = imp.emit(relax.op.add(out, bias.expr), node.label)
    return Value(out, f"{node.label}.out")


def batch_norm(
    imp: ImporterFace, node: NodeFace, x: Value, parameters: Sequence[relax.Expr], epsilon: float
) -> Value:
    """``relax.nn.batch_norm`` with (gamma, beta, mean, var); keeps its producer's name."""
    call = relax.op.nn.batch_norm(x.expr, *parameters, axis=1, epsilon=epsilon, training=False)
    out = imp.emit(relax.TupleGetItem(imp.emit(call, node.label), 0), node.label)
    return Value(out, x.base)
