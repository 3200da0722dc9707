"""The float network that metrics ask, batch normalisation folded, and its layers' quantizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from tvm_q4.quantize import graph as g
from tvm_q4.quantize.config import PRESETS
from tvm_q4.quantize.constants import LAYER_KEY, read_constant
from tvm_q4.quantize.ptq import calibrate, prepare_ptq
from tvm_q4.quantize.switchable import SwitchableQuantizer, quantizer_of, start_quantizing

BITS = (4, 8)
_LARGEST_OF_4_BITS = 7


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer.

    Parameters
    ----------
    name : str
        Module path.
    weight : Tensor
        float32 [O, ...], batch normalisation folded.
    macs : int
        Multiplications for one image.
    fixed : bool
        Whether it stays at 8 bit: the first convolution and the last linear layer.
    source : Node
        What makes its input.
    """

    name: str
    weight: Tensor
    macs: int
    fixed: bool
    source: Node


@dataclass(frozen=True)
class LayerCall:
    """A layer at work.

    Parameters
    ----------
    index : int
        Of the layer among `FloatNetwork.layers`.
    layer : Layer
    x : Tensor
        Its input [n, ...].
    compute : callable
        From an input and a weight to the layer's output, bias included.
    """

    index: int
    layer: Layer
    x: Tensor
    compute: Callable[[Tensor, Tensor], Tensor]


Hook = Callable[[LayerCall], Tensor]


class FloatNetwork:
    """A float network whose layers can be watched and changed while it runs.

    Quantizers are as `tvm_q4.quantize.quantize_ptq` places them, at the scales that it would choose
    with its default observers, before it changes weights (rounding) or biases.

    Parameters
    ----------
    program : ExportedProgram
    example : tuple of Tensor
        A batch that it takes.

    Attributes
    ----------
    layers : list of Layer
        In graph order.

    Raises
    ------
    UnsupportedError
        If the network has no layer.
    """

    def __init__(self, program: ExportedProgram, example: tuple[Tensor, ...]) -> None:
        self._prepared = {
            bits: prepare_ptq(program, example, PRESETS[f"uniform{bits}"]) for bits in BITS
        }
        graphs = {bits: _layer_nodes(module.graph.nodes) for bits, module in self._prepared.items()}
        self._graph = self._prepared[8]
        self._quantizers = {
            bits: [
                (quantizer_of(self._prepared[bits], n.args[1]), self._input_quantizer(bits, n))
                for n in nodes.values()
            ]
            for bits, nodes in graphs.items()
        }
        self.layers = [
            self._layer(node, self._quantizers[4][i][0].quant_max > _LARGEST_OF_4_BITS)
            for i, node in enumerate(graphs[8].values())
        ]
        names = [layer.name for layer in self.layers]
        self._index = {
            node: names.index(node.meta[LAYER_KEY])
            for node in self._graph.graph.nodes
            if g.is_weighted(node)
        }

    def run(self, x: Tensor, hook: Hook | None = None) -> Tensor:
        """Return the logits of `x` [n, C, H, W].

        Parameters
        ----------
        x : Tensor
        hook : callable, optional
            Called for each layer, it returns the layer's output (``call.compute``, in the end).
        """
        return _Run(self, hook).run(x)

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Find the scales of weights and activations; to be called once, before anything else.

        Parameters
        ----------
        batches : iterable of Tensor
            Inputs like the example.
        """
        images = list(batches)
        for module in self._prepared.values():
            calibrate(module, images)
            start_quantizing(module)
            module.requires_grad_(False)  # of the scales, which start_quantizing makes trainable

    def quantized_weight(self, index: int, bits: int) -> Tensor:
        """Return the weight of a layer, quantized and dequantized; after `calibrate`."""
        return self._quantizers[bits][index][0](self.layers[index].weight)

    def quantized_input(self, index: int, bits: int, x: Tensor) -> Tensor:
        """Return the input `x` of a layer, quantized and dequantized; after `calibrate`."""
        return self._quantizers[bits][index][1](x)

    def ties(self) -> list[list[str]]:
        """Return the names of layers that read one tensor and do not stay at 8 bit, by tensor."""
        groups: dict[Node, list[str]] = {}
        for layer in self.layers:
            if not layer.fixed:
                groups.setdefault(layer.source, []).append(layer.name)
        return [names for names in groups.values() if len(names) > 1]

    def _input_quantizer(self, bits: int, node: Node) -> SwitchableQuantizer:
        source = node.args[0]
        assert isinstance(source, Node)
        return quantizer_of(self._prepared[bits], source)

    def _layer(self, node: Node, fixed: bool) -> Layer:
        quantized, weight = node.args[:2]
        assert isinstance(quantized, Node) and isinstance(weight, Node)
        (source,), (stored,) = quantized.all_input_nodes, weight.all_input_nodes
        value = read_constant(self._graph, str(stored.target)).detach()
        pixels = math.prod(node.meta["val"].shape[2:])
        return Layer(node.meta[LAYER_KEY], value, value.numel() * pixels, fixed, source)


class _Run(Interpreter):  # type: ignore[misc]
    """One pass through the network, in which quantizers let tensors pass."""

    def __init__(self, network: FloatNetwork, hook: Hook | None) -> None:
        super().__init__(network._graph)
        self._network, self._hook = network, hook

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0]

    def run_node(self, n: Node) -> Any:
        index = self._network._index.get(n)
        if index is None or self._hook is None:
            return super().run_node(n)
        (x, _, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        operator: Any = n.target

        def compute(value: Tensor, weight: Tensor) -> Tensor:
            return operator(value, weight, *rest, **kwargs)

        return self._hook(LayerCall(index, self._network.layers[index], x, compute))


def _layer_nodes(nodes: Iterable[Node]) -> dict[str, Node]:
    """Return the layers of a prepared graph by name; one that is called again is its first call."""
    found: dict[str, Node] = {}
    for node in nodes:
        if g.is_weighted(node):
            found.setdefault(node.meta[LAYER_KEY], node)
    return found
