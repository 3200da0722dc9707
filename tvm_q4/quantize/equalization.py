"""Cross-layer equalization of convolutions and linear layers around a ReLU.

Method: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, section 4.1: since ``relu(s * x) = s * relu(x)`` for s > 0, a channel between two layers may
be scaled down in the first and up in the second. With per-channel weight scales the first layer
does not care; the second gains where its input channels have weights of unequal size, and the
tensor between them where its channels have unequal ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from tvm_q4.quantize import graph as g
from tvm_q4.quantize.constants import read_constant
from tvm_q4.quantize.switchable import floating, quantizers_in, start_quantizing
from tvm_q4.quantize.units import Unit

_IMAGES = 128
"""Images on which "auto" decides."""

_GAIN = 0.9
"""A pair is equalized where the unit's squared error falls below this share of what it was.

Smaller gains do not carry over to accuracy: examples/quantize/README.md, Post-training.
"""


@dataclass(frozen=True)
class Pair:
    """Two layers with a ReLU between them that nothing else reads."""

    first: Node
    second: Node


def pairs_in(layers: tuple[Node, ...]) -> list[Pair]:
    """Return the pairs among `layers` (of a prepared graph) that can be equalized.

    A layer whose weight another layer reads too is left alone.
    """
    found = []
    for second in layers:
        relu = _behind_quantizer(second.args[0])
        first = relu.args[0] if g.called(relu, g.RELUS) else None
        if (
            isinstance(first, Node)
            and g.is_weighted(first)
            and all(len(node.users) == 1 for node in (relu, first, *_constants(first, second)))
            and len(relu.users) == 1
        ):
            found.append(Pair(first, second))
    return found


def equalize_units(
    prepared: GraphModule, units: list[Unit], x: Tensor, mode: Literal[True, "auto"]
) -> list[Pair]:
    """Equalize pairs of layers in place; return those that were.

    Parameters
    ----------
    prepared : GraphModule
        Before calibration, with batch normalisation folded. Its observers start anew afterwards.
    units : list of Unit
        Of `prepared`.
    x : Tensor
        Calibration inputs [N, C, H, W], used for "auto".
    mode : True or "auto"
        All pairs, or those that lower the squared error of the output of the unit that they lie
        in, given the float network's input. A pair that lies across units is left alone by "auto".
    """
    if mode is True:
        layers = tuple(layer for unit in units for layer in unit.layers)
        chosen = pairs_in(layers)
        for pair in chosen:
            scale_pair(prepared, pair)
        return chosen
    chosen, x = [], x[:_IMAGES]
    for unit in units:
        with floating(unit.module):
            target = unit.run(x)
        pairs = pairs_in(unit.layers)
        error = _quantized_error(unit, x, target) if pairs else 0.0
        for pair in pairs:
            before = [(value, value.clone()) for value in _values(prepared, pair)]
            scale_pair(prepared, pair)
            now = _quantized_error(unit, x, target)
            if now < _GAIN * error:
                chosen, error = [*chosen, pair], now
                continue
            for value, old in before:
                value.copy_(old)
        x = target
    return chosen


@torch.no_grad()
def scale_pair(prepared: GraphModule, pair: Pair) -> None:
    """Scale the channels between two layers so that both weights have equal ranges there."""
    first, second, *bias = _values(prepared, pair)
    groups = pair.second.args[6] if len(pair.second.args) > 6 else 1
    assert isinstance(groups, int)
    shaped = second.reshape(groups, second.shape[0] // groups, second.shape[1], -1)
    range1 = first.flatten(1).abs().amax(1)
    range2 = shaped.abs().amax((1, 3)).flatten()
    scale = (range1 / range2).sqrt()
    scale = torch.where((range1 > 0) & (range2 > 0), scale, torch.ones_like(scale))
    first.div_(scale.reshape(-1, *[1] * (first.ndim - 1)))
    shaped.mul_(scale.reshape(groups, 1, -1, 1))
    for value in bias:
        value.div_(scale)


def _values(prepared: GraphModule, pair: Pair) -> list[Tensor]:
    """Return the weights of both layers, and the first's bias where it has one."""
    return [
        read_constant(prepared, str(n.target)).detach() for n in _constants(pair.first, pair.second)
    ]


def _constants(first: Node, second: Node) -> list[Node]:
    bias = first.args[2] if len(first.args) > 2 else None
    weights = [_behind_quantizer(layer.args[1]) for layer in (first, second)]
    return [*weights, bias] if isinstance(bias, Node) else weights


def _behind_quantizer(value: object) -> Node:
    """Return the tensor that a layer's operand is, without its quantizer."""
    assert isinstance(value, Node)
    source = value.args[0] if value.op == "call_module" and len(value.users) == 1 else value
    assert isinstance(source, Node)
    return source


def _quantized_error(unit: Unit, x: Tensor, target: Tensor) -> float:
    """Return the mean squared error of the unit's output, quantized with what `x` shows."""
    quantizers = quantizers_in(unit.module)
    for quantizer in quantizers:
        quantizer.restart()
    unit.run(x)
    start_quantizing(unit.module)
    error = float((unit.run(x) - target).square().mean())
    for quantizer in quantizers:
        quantizer.restart()
    return error
