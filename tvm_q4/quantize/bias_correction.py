"""Empirical bias correction: what quantization adds to a channel's mean is taken off its bias.

Method: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, section 4.2 and appendix D (the empirical form): layer by layer, each seeing the errors of
those before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from tvm_q4.quantize import graph as g
from tvm_q4.quantize.constants import LAYER_KEY, read_constant
from tvm_q4.quantize.switchable import floating
from tvm_q4.quantize.units import Unit, channel_means, subgraph


def give_biases(prepared: GraphModule) -> None:
    """Give every layer that has no bias one of zeros."""
    for node in list(prepared.graph.nodes):
        if not g.is_weighted(node) or (len(node.args) > 2 and node.args[2] is not None):
            continue
        weight = node.args[1]
        while weight.op != "get_attr":
            weight = weight.args[0]
        shape = read_constant(prepared, str(weight.target)).shape
        name = f"{node.meta[LAYER_KEY]}.weight_bias".replace(".", "_")
        prepared.register_parameter(name, nn.Parameter(torch.zeros(shape[0])))
        with prepared.graph.inserting_before(node):
            bias = prepared.graph.get_attr(name)
        node.args = (*node.args[:2], bias, *node.args[3:])
    prepared.recompile()


def float_means(prepared: GraphModule, unit: Unit, y: Tensor) -> list[Tensor]:
    """Return the means by channel of the unit's layers in the float network: float64 [C] each.

    To be called before anything is done to the unit's weights and biases.

    Parameters
    ----------
    prepared : GraphModule
    unit : Unit
        Of `prepared`.
    y : Tensor
        The unit's input in the float network [N, ...].
    """
    if not unit.layers:
        return []
    layers = subgraph(prepared, unit.source, unit.layers)
    with floating(layers):
        return channel_means(layers, y, unit.fixed_batch)


@torch.no_grad()
def correct_biases(prepared: GraphModule, unit: Unit, x: Tensor, wanted: list[Tensor]) -> None:
    """Make the means by channel of the unit's layers what they are in the float network.

    A bias that several layers read is left alone.

    Parameters
    ----------
    prepared : GraphModule
        Quantizing; every layer has a bias (`give_biases`).
    unit : Unit
        Of `prepared`.
    x : Tensor
        Its input in the quantized network [N, ...].
    wanted : list of Tensor
        From `float_means`.
    """
    for layer, mean in zip(unit.layers, wanted, strict=True):
        if len(_bias(layer).users) > 1:
            continue
        (found,) = channel_means(subgraph(prepared, unit.source, [layer]), x, unit.fixed_batch)
        bias = read_constant(prepared, str(_bias(layer).target))
        bias.add_((mean - found).to(bias.dtype))


def _bias(layer: Node) -> Node:
    bias = layer.args[2]
    assert isinstance(bias, Node)
    return bias
