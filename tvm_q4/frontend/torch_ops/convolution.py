"""Convolutions and linear layers, with their bias as a separate add."""

from __future__ import annotations

from tvm import relax

from tvm_q4.frontend.torch_ops.registry import (
    ImporterFace,
    NodeView,
    Value,
    converts,
    pair,
    positive,
)
from tvm_q4.ops import pooled_size


def _same_padding(kernel: list[int], dilation: list[int]) -> list[int]:
    """(top, left, bottom, right) of torch's ``padding="same"``: the odd pixel goes after."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    before = [t // 2 for t in total]
    return [*before, *(t - b for t, b in zip(total, before, strict=True))]


def _padding(node: NodeView, kernel: list[int], dilation: list[int]) -> list[int]:
    padding = node["padding"]
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding == "same":
        return _same_padding(kernel, dilation)
    return pair(padding) * 2


def _check_conv(node: NodeView, x: Value, weight: Value) -> None:
    if len(x.shape) != 4 or len(weight.shape) != 4:
        raise node.unsupported(
            f"only 2-D convolutions of [N, C, H, W] are supported, found input {x.shape}"
        )
    if any(node.args.get("output_padding") or []) or node.args.get("transposed"):
        raise node.unsupported("transposed convolutions are not supported")
    if x.shape[1] != weight.shape[1] * int(node["groups"]):
        raise node.unsupported(
            f"input {x.shape} does not fit weight {weight.shape} in {node['groups']} group(s)"
        )


@converts("aten.conv2d.default", "aten.conv2d.padding", "aten.convolution.default")
def conv2d(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.conv2d`` NCHW/OIHW, then the bias reshaped to [1, O, 1, 1] and added."""
    x, weight, bias = node.tensor("input"), node.tensor("weight"), node["bias"]
    _check_conv(node, x, weight)
    stride, dilation = pair(node["stride"]), pair(node["dilation"])
    kernel = weight.shape[2:]
    pad = _padding(node, kernel, dilation)
    sizes = [
        pooled_size(x.shape[2 + i], kernel[i], stride[i], pad[i] + pad[i + 2], dilation[i], False)
        for i in (0, 1)
    ]
    positive(sizes, node)
    call = relax.op.nn.conv2d(x.expr, weight.expr, stride, pad, dilation, int(node["groups"]))
    out = imp.emit(call, node.label)
    if bias is not None:
        shaped = imp.emit(
            relax.op.reshape(bias.expr, [1, weight.shape[0], 1, 1]), f"{node.label}.bias"
        )
        out = imp.emit(relax.op.add(out, shaped), node.label)
    return Value(out, f"{node.label}.out")


def _check_matmul(node: NodeView, x: Value, features: int) -> None:
    if x.shape[-1] != features:
        msg = (
            f"the layer takes {features} features and is given {x.shape[-1]}; the model does not "
            "work at this image size, leave --image-size out or change it"
        )
        raise node.unsupported(msg)


@converts("aten.linear.default")
def linear(imp: ImporterFace, node: NodeView) -> Value:
    """``matmul(x, permute_dims(weight)) + bias``, the form of ``relax.op.linear``."""
    x, weight, bias = node.tensor("input"), node.tensor("weight"), node["bias"]
    _check_matmul(node, x, weight.shape[1])
    transposed = imp.emit(relax.op.permute_dims(weight.expr), f"{node.label}.weight.t")
    out = imp.emit(relax.op.matmul(x.expr, transposed), node.label)
    if bias is not None:
        out = imp.emit(relax.op.add(out, bias.expr), node.label)
    return Value(out, f"{node.label}.out")


@converts("aten.addmm.default")
def addmm(imp: ImporterFace, node: NodeView) -> Value:
    """A linear layer after decomposition: ``bias + x @ weight_t``."""
    if node["beta"] != 1 or node["alpha"] != 1:
        raise node.unsupported(f"beta {node['beta']} and alpha {node['alpha']} must both be 1")
    x, weight = node.tensor("mat1"), node.tensor("mat2")
    _check_matmul(node, x, weight.shape[0])
    out = imp.emit(relax.op.matmul(x.expr, weight.expr), node.label)
    out = imp.emit(relax.op.add(out, node["self"].expr), node.label)
    return Value(out, f"{node.label}.out")


@converts("aten.mm.default", "aten.matmul.default")
def matmul(imp: ImporterFace, node: NodeView) -> Value:
    """A linear layer without bias after decomposition: ``x @ weight_t``."""
    x, weight = node.args.values()
    if len(weight.shape) != 2:
        raise node.unsupported(f"only products with a matrix are supported, found {weight.shape}")
    _check_matmul(node, x, weight.shape[0])
    return Value(imp.emit(relax.op.matmul(x.expr, weight.expr), node.label), f"{node.label}.out")
