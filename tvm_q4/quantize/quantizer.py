"""`Q4Quantizer`: where quantizers stand in a network, and their bits (numerics.md, Tensors).

Every quantizer belongs to an edge (producer, reader). Edges from one producer with the same bits
share one quantizer (PT2E's implicit sharing), so a tensor that all readers want at 8 bit is
quantized once, and one that is read at 4 bit by a convolution and at 8 bit by the residual stream
is quantized twice from the same float value. Rules, by reader:

* convolution, linear: the input at the layer's activation bits; the weight per output channel.
* residual add: nothing on the main path (its last convolution's accumulator enters the add); the
  skip at `residual_bits`. Where both sides are convolutions, the shallower one (the shortcut) is
  the skip and is quantized signed.
* concat: each branch at `residual_bits` at its own scale.
* average pool: its input, at the most bits that a reader of the result wants.
* max-pool, and the slices and padding of an "option A" shortcut: the input, likewise; readers at
  the same bits share that quantizer, others quantize again from the wider one.

Tensors that come out of a ReLU are unsigned (0..255, 0..15), others and all of 16 bit signed
(-128..127, -8..7, -32768..32767), with zero point 0; weights are -127..127 and -7..7. Biases stay
float: importers round them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.quantize import graph as g
from tvm_q4.quantize.config import BitConfig, LayerBits
from tvm_q4.quantize.constants import LAYER_KEY

_KEY = "quantization_annotation"
_GRID_KEEPING = g.MAX_POOLS + g.MOVES


class Q4Quantizer(Quantizer):
    """PT2E quantizer for ResNet-like networks in int4, int8 or a mix.

    Parameters
    ----------
    config : BitConfig
        Weight and activation bits by layer.
    weight_observer, activation_observer : callable
        Constructors of observers or fake quantizers (``Class.with_args``-able), for weights (one
        scale an output channel) and activations (one scale a tensor).
    residual_bits : int
        Bits of the residual stream and of concat branches: 4, 8 or 16 (int16, signed throughout).
    """

    def __init__(
        self,
        config: BitConfig,
        weight_observer: Callable[..., Any],
        activation_observer: Callable[..., Any],
        residual_bits: int = 8,
    ) -> None:
        super().__init__()
        if residual_bits not in (4, 8, 16):
            msg = f"residual_bits is {residual_bits}; it must be 4, 8 or 16"
            raise InputError(msg)
        self.config = config
        self.weight_observer = weight_observer
        self.activation_observer = activation_observer
        self.residual_bits = residual_bits
        self.bits: dict[str, LayerBits] = {}

    def annotate(self, model: GraphModule) -> GraphModule:
        """Attach a quantization spec to every edge that is quantized.

        Raises
        ------
        UnsupportedError
            If the graph has no convolution or linear layer with constant weights.
        InputError
            If the bit config names a layer that the graph does not have.
        """
        layers = g.weighted_layers(model.graph)
        if not layers:
            msg = "the model has no convolution or linear layer with constant weights to quantize"
            raise UnsupportedError(msg)
        self.bits = self.config.resolve(layers, _first_and_last(layers))
        depths = g.convolution_depths(model.graph)
        for node in model.graph.nodes:
            if g.called(node, g.WEIGHTED) and g.is_constant(node.args[1]):
                node.meta[LAYER_KEY] = g.layer_name(node)
            edges = self._edges(node, depths)
            if edges:
                node.meta[_KEY] = QuantizationAnnotation(edges, _annotated=True)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept every annotated graph; the frontend judges what it can compile."""

    def _edges(
        self, node: Node, depths: dict[Node, int]
    ) -> dict[Node, QuantizationSpecBase | None]:
        """Return the specs of `node`'s inputs; empty where nothing is quantized."""
        if g.called(node, g.WEIGHTED) and g.is_constant(node.args[1]):
            bits = self.bits[g.layer_name(node)]
            source, weight = node.args[:2]
            assert isinstance(source, Node) and isinstance(weight, Node)
            return {source: self._activation(source, bits.activation), weight: self._weight(bits)}
        if g.called(node, g.ADDS):
            return self._add_edges(node, depths)
        if g.called(node, g.CONCATS):
            return {s: self._activation(s, self.residual_bits) for s in g.tensor_inputs(node)}
        if g.called(node, g.AVERAGE_POOLS + _GRID_KEEPING):
            source = node.args[0]
            assert isinstance(source, Node)
            if g.called(node, g.MOVES) and g.called(source, g.MOVES):
                return {}
            return {source: self._activation(source, self._wanted_bits(node))}
        return {}

    def _add_edges(
        self, node: Node, depths: dict[Node, int]
    ) -> dict[Node, QuantizationSpecBase | None]:
        """Quantize the skip, or both operands where neither is an accumulator."""
        operands = g.tensor_inputs(node)
        main = _main_path(operands, depths) if len(operands) == 2 else None
        return {s: self._activation(s, self.residual_bits) for s in operands if s is not main}

    def _activation(self, source: Node, bits: int) -> QuantizationSpecBase:
        """Return the spec for reading `source` at `bits`, tied to the grid that it lies on."""
        signed = bits == 16 or not g.is_non_negative(source)
        edge = _grid_edge(source)
        if edge is not None:
            spec = _root_spec(edge)
            if _width(spec) == bits:
                return SharedQuantizationSpec(edge)
        container = torch.int8 if signed else torch.uint8
        return QuantizationSpec(
            dtype=torch.int16 if bits == 16 else container,
            observer_or_fake_quant_ctr=self.activation_observer,
            quant_min=-(1 << (bits - 1)) if signed else 0,
            quant_max=(1 << (bits - signed)) - 1,
            qscheme=torch.per_tensor_symmetric,
        )

    def _weight(self, bits: LayerBits) -> QuantizationSpec:
        limit = (1 << (bits.weight - 1)) - 1
        return QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=self.weight_observer,
            quant_min=-limit,
            quant_max=limit,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )

    def _wanted_bits(self, node: Node) -> int:
        """Return the most bits at which any reader of `node`'s values reads them."""
        wanted = []
        for user in node.users:
            if g.called(user, g.WEIGHTED) and g.is_constant(user.args[1]):
                wanted.append(self.bits[g.layer_name(user)].activation)
            elif g.called(user, g.AVERAGE_POOLS + _GRID_KEEPING + g.RESHAPES):
                wanted.append(self._wanted_bits(user))
            else:
                wanted.append(self.residual_bits)
        return max(wanted, default=self.residual_bits)


def _first_and_last(layers: dict[str, Node]) -> list[str]:
    """Return the names of the first convolution and of the last linear layer, where they exist."""
    convolutions = [name for name, node in layers.items() if g.called(node, g.CONVOLUTIONS)]
    linears = [name for name, node in layers.items() if g.called(node, g.LINEARS)]
    return convolutions[:1] + linears[-1:]


def _main_path(operands: list[Node], depths: dict[Node, int]) -> Node | None:
    """Return the operand whose accumulator enters the add: the deepest convolution, else None."""
    sums = [s for s in operands if len(s.users) == 1 and g.accumulator_of(s) is not None]
    return max(sums, key=lambda s: depths[s], default=None)


def _grid_edge(source: Node) -> tuple[Node, Node] | None:
    """Return the quantized edge whose integers `source` only moves or picks, if there is one."""
    while g.called(source, _GRID_KEEPING + g.RESHAPES):
        producer = source.args[0]
        assert isinstance(producer, Node)
        if _KEY in source.meta:
            return producer, source
        source = producer
    return None


def _root_spec(edge: tuple[Node, Node]) -> QuantizationSpec:
    """Return the spec that the edge has, or that of the edge that it shares with."""
    spec = edge[1].meta[_KEY].input_qspec_map[edge[0]]
    return _root_spec(spec.edge_or_node) if isinstance(spec, SharedQuantizationSpec) else spec


def _width(spec: QuantizationSpec) -> int:
    """Return the bits of the spec's integer range."""
    assert spec.quant_min is not None and spec.quant_max is not None
    return (spec.quant_max - spec.quant_min).bit_length()
