"""Convolutions and linear layers, with their bias as a separate add."""

from __future__ import annotations

from tvm_q4.frontend.common import layers
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.torch_ops.registry import NodeView, converts, pair


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


@converts("aten.conv2d.default", "aten.conv2d.padding", "aten.convolution.default")
def conv2d(imp: ImporterFace, node: NodeView) -> Value:
    """As `layers.conv2d`."""
    if any(node.args.get("output_padding") or []) or node.args.get("transposed"):
        raise node.unsupported("transposed convolutions are not supported")
    weight, dilation = node.tensor("weight"), pair(node["dilation"])
    return layers.conv2d(
        imp, node, node.tensor("input"), weight, node["bias"], strides=pair(node["stride"]),
        padding=_padding(node, weight.shape[2:], dilation), dilation=dilation,
        groups=int(node["groups"]),
    )  # fmt: skip


@converts("aten.linear.default")
def linear(imp: ImporterFace, node: NodeView) -> Value:
    """``matmul(x, permute_dims(weight)) + bias``, the form of ``relax.op.linear``."""
    x, weight = node.tensor("input"), node.tensor("weight")
    return layers.linear(imp, node, x, weight, node["bias"], transposed=True)


@converts("aten.addmm.default")
def addmm(imp: ImporterFace, node: NodeView) -> Value:
    """A linear layer after decomposition: ``bias + x @ weight_t``."""
    if node["beta"] != 1 or node["alpha"] != 1:
        raise node.unsupported(f"beta {node['beta']} and alpha {node['alpha']} must both be 1")
    x, weight = node.tensor("mat1"), node.tensor("mat2")
    return layers.linear(imp, node, x, weight, node["self"], transposed=False)


@converts("aten.mm.default", "aten.matmul.default")
def matmul(imp: ImporterFace, node: NodeView) -> Value:
    """A linear layer without bias after decomposition: ``x @ weight_t``."""
    x, weight = node.args.values()
    return layers.linear(imp, node, x, weight, None, transposed=False)
