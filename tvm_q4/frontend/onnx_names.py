"""Names of the tensors of an ONNX model: the path of the module that a weight belongs to."""

from __future__ import annotations

import re

import onnx

from tvm_q4.frontend.common.writer import TensorNames
from tvm_q4.frontend.onnx_structure import OnnxGraph, result_of

LAYERS = {
    "Conv": (1, 2), "Gemm": (1, 2), "MatMul": (1, None),
    "QLinearConv": (3, 8), "QLinearMatMul": (3, None), "QGemm": (3, 6),
}  # fmt: skip
"""Operators of a layer with a name of its own: positions of the weight and of the bias."""

_PREPARES = {
    "QuantizeLinear", "DequantizeLinear", "Clip", "Quant", "IntQuant", "Transpose", "Reshape",
    "Identity", "Cast", "Squeeze", "Unsqueeze",
}  # fmt: skip
_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"}
"""Operators of modules that do nothing else, and therefore lend them their name."""

_DERIVED = re.compile(r"(_quantized|_DequantizeLinear|_QuantizeLinear|_fused_bn|_transposed|_bn)+$")
_SCOPES = "pkg.torch.onnx.name_scopes"


def _module_path(node: onnx.NodeProto) -> str | None:
    """Path of torch's module that made a node, None where the file does not tell.

    Exporters write it as ``/layer1/layer1.0/conv1/Conv`` into the node's name, or as the list
    ``['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d']`` into its metadata.
    """
    scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), None)
    if isinstance(scopes, str) and scopes.isprintable():
        return (["", *re.findall(r"'([^']*)'", scopes)][:-1] or [""])[-1]
    if not node.name.startswith("/"):
        return None
    parts: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)


def _plain(node: onnx.NodeProto) -> str:
    """Name of a node, or of its result, without what exporters and quantizers put around it."""
    for name in (node.name, result_of(node)):
        clean = re.sub(r"(_quant|_output_0|:0)+$", "", name).removeprefix("node_").strip("/")
        if clean:
            return clean
    return node.op_type.lower()


def _stem(node: onnx.NodeProto, *, leaf: bool) -> str:
    """Name for a node's result; a `leaf` has the path of its module alone."""
    path = _module_path(node)
    if path is None:
        return _plain(node)
    return path if path and leaf else f"{path}.{_kind(node).lower()}".lstrip(".")


def _kind(node: onnx.NodeProto) -> str:
    """The float operator that a node computes."""
    return node.op_type.removeprefix("QLinear")


class OnnxNames(TensorNames):
    """Hands out unique names: layers first, so that nothing else takes a layer's name.

    Attributes
    ----------
    roles : dict of str to str
        ``<layer>.weight`` or ``<layer>.bias`` for each tensor that only prepares one.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        super().__init__()
        self.roles: dict[str, str] = {}
        self._graph = graph
        self._layers = {
            result_of(n): self.layer(self._layer_name(n))
            for n in graph.nodes
            if n.op_type in LAYERS
        }
        for node in graph.nodes:
            if node.op_type in LAYERS:
                self._mark(node)

    def label(self, node: onnx.NodeProto) -> str:
        """Unique name of the tensor that a node makes."""
        if result_of(node) in self._layers:
            return self._layers[result_of(node)]
        return self.unique(_stem(node, leaf=_kind(node) in _POOLS))

    def _layer_name(self, node: onnx.NodeProto) -> str:
        """Module of the weight or bias, else the node's, else the name of node or result."""
        for at, suffix in zip(LAYERS[node.op_type], (".weight", ".bias"), strict=True):
            if at is not None and at < len(node.input) and node.input[at]:
                origin = _DERIVED.sub("", self._chain(node.input[at])[-1])
                if origin.endswith(suffix):
                    return origin.removesuffix(suffix)
        return _stem(node, leaf=True)

    def _chain(self, tensor: str) -> list[str]:
        """Tensors from a layer's parameter back to where it comes from."""
        chain = [tensor]
        while (node := self._graph.makers.get(chain[-1])) and node.op_type in _PREPARES:
            if not node.input or node.input[0] in chain:
                break
            chain.append(node.input[0])
        return chain

    def _mark(self, node: onnx.NodeProto) -> None:
        name = self._layers[result_of(node)]
        for at, part in zip(LAYERS[node.op_type], ("weight", "bias"), strict=True):
            if at is None or at >= len(node.input) or not node.input[at]:
                continue
            chain = self._chain(node.input[at])
            if chain[-1] not in self._graph.makers and chain[-1] != self._graph.input.name:
                for tensor in chain[:-1]:
                    self.roles.setdefault(tensor, f"{name}.{part}")
