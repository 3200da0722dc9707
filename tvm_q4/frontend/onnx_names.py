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
_LEAVES = {"MaxPool", "AveragePool", "GlobalAveragePool"}
"""Operators of torch's modules that have a path of their own."""

_DERIVED = re.compile(r"(_quantized|_DequantizeLinear|_QuantizeLinear|_fused_bn|_transposed|_bn)+$")


def _joined(scopes: str) -> str:
    """Module path of torch's ``/layer1/layer1.0/conv1/Conv``, without the operator."""
    parts: list[str] = []
    for part in scopes.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)


def _clean(name: str) -> str:
    """A name without what exporters and quantizers put around it; may be empty."""
    name = re.sub(r"(_quant|_output_0|:0)+$", "", name).removeprefix("node_")
    if not name.startswith("/"):
        return name
    path, op = _joined(name), name.rpartition("/")[2]
    if path and op.split("_")[0] in _LEAVES:
        return path
    return f"{path}.{op.lower()}".lstrip(".")


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
        return self.unique(_clean(node.name) or _clean(result_of(node)) or node.op_type.lower())

    def _layer_name(self, node: onnx.NodeProto) -> str:
        """Module of the weight, else the node's name, else the name of its result."""
        at = LAYERS[node.op_type][0]
        origin = self._chain(node.input[at])[-1] if at < len(node.input) else ""
        weight = _DERIVED.sub("", origin)
        if weight.endswith(".weight"):
            return weight.removesuffix(".weight")
        if node.name.startswith("/"):
            return _joined(node.name) or _clean(node.name)
        return _clean(node.name) or _clean(result_of(node)) or node.op_type.lower()

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
