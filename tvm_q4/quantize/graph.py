"""Questions about an exported graph that the quantizer asks: operators, names, signs, depths."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
LINEARS = (aten.linear.default,)
WEIGHTED = CONVOLUTIONS + LINEARS
ADDS = (aten.add.Tensor, aten.add_.Tensor)
BATCH_NORMS = (aten.batch_norm.default,)
MAX_POOLS = (aten.max_pool2d.default,)
AVERAGE_POOLS = (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim)
CONCATS = (aten.cat.default,)
RELUS = (aten.relu.default, aten.relu_.default)
CLAMPS = (aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default)
DROPOUTS = (aten.dropout.default, aten.dropout_.default)
MOVES = (aten.slice.Tensor, aten.pad.default, aten.constant_pad_nd.default)
RESHAPES = (aten.flatten.using_ints, aten.view.default, aten.reshape.default, *DROPOUTS)


def called(node: Node, operators: tuple[Any, ...]) -> bool:
    """Return whether `node` calls one of `operators`."""
    return node.op == "call_function" and node.target in operators


def is_constant(value: object) -> bool:
    """Return whether `value` is a graph node that reads a parameter or buffer."""
    return isinstance(value, Node) and value.op == "get_attr"


def is_weighted(node: Node) -> bool:
    """Return whether `node` is a convolution or linear layer with a constant weight.

    The weight may be behind a quantizer, as in a prepared graph.
    """
    return called(node, WEIGHTED) and is_made_of_constants(node.args[1])


def is_made_of_constants(value: object) -> bool:
    """Return whether `value` is a constant or a node, such as a quantizer, that reads only them."""
    if not isinstance(value, Node):
        return False
    sources = value.all_input_nodes
    return is_constant(value) or (bool(sources) and all(map(is_constant, sources)))


def layer_name(node: Node) -> str:
    """Return the module path of a convolution or linear layer, from its weight's name."""
    weight = node.args[1]
    assert isinstance(weight, Node)
    return str(weight.target).removesuffix(".weight")


def weighted_layers(graph: Graph) -> dict[str, Node]:
    """Return convolutions and linear layers with constant weights, by name, in graph order.

    A module that is called more than once has one entry, that of its first call.
    """
    layers: dict[str, Node] = {}
    for node in graph.nodes:
        if called(node, WEIGHTED) and is_constant(node.args[1]):
            layers.setdefault(layer_name(node), node)
    return layers


def tensor_inputs(node: Node) -> list[Node]:
    """Return the non-constant tensors that `node` reads, those of a list argument included."""
    return [source for source in node.all_input_nodes if not is_constant(source)]


def is_non_negative(node: Node) -> bool:
    """Return whether every value of the tensor is known to be >= 0 (it comes from a ReLU)."""
    if called(node, RELUS):
        return True
    if called(node, CLAMPS):
        return len(node.args) < 2 or float(node.args[1]) >= 0.0
    if called(node, CONCATS):
        return all(is_non_negative(source) for source in tensor_inputs(node))
    if called(node, MAX_POOLS + AVERAGE_POOLS + MOVES + RESHAPES):
        source = node.args[0]
        return isinstance(source, Node) and is_non_negative(source)
    return False


def accumulator_of(node: Node) -> Node | None:
    """Return the convolution whose sum, batch normalisation included, `node` is, if any."""
    if called(node, BATCH_NORMS):
        source = node.args[0]
        assert isinstance(source, Node)
        return source if called(source, CONVOLUTIONS) and len(source.users) == 1 else None
    return node if called(node, CONVOLUTIONS) else None


def convolution_depths(graph: Graph) -> dict[Node, int]:
    """Return, for each node, the most convolutions on a path from the input through it."""
    depths: dict[Node, int] = {}
    for node in graph.nodes:
        before = max((depths[source] for source in node.all_input_nodes), default=0)
        depths[node] = before + called(node, CONVOLUTIONS)
    return depths
