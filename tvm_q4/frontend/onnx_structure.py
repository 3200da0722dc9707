"""The graph of an ONNX model as a structure: who makes and who reads each tensor, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx

from tvm_q4.errors import InputError, UnsupportedError


@dataclass
class OnnxGraph:
    """A checked graph.

    Attributes
    ----------
    nodes : list of NodeProto
        In an order in which every tensor is made before it is read; what no output needs is left
        out.
    constants : dict of str to TensorProto
        Initializers and the values of Constant nodes.
    makers : dict of str to NodeProto
        Node that makes each tensor.
    readers : dict of str to list of NodeProto
    input : ValueInfoProto
    outputs : list of str
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, onnx.TensorProto]
    input: onnx.ValueInfoProto
    outputs: list[str]
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The node that alone reads a tensor, or None."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None


def describe(node: onnx.NodeProto) -> str:
    """Name and operator of a node, or its first result where it has no name."""
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"node '{node.name or next(iter(node.output), '?')}' ({op})"


def result_of(node: onnx.NodeProto) -> str:
    """The first tensor that a node makes."""
    return next(filter(None, node.output))


def _is_constant(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and not node.domain and any(node.output)


def constant_value(node: onnx.NodeProto) -> onnx.TensorProto:
    """Value of a Constant node.

    Raises
    ------
    UnsupportedError
        If it is text, or sparse.
    """
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    name, value = next(iter(values.items()), ("", None))
    if name == "value" and isinstance(value, onnx.TensorProto):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    dtype = {"value_float": "float32", "value_int": "int64"}.get(name.removesuffix("s"))
    if dtype is None or len(values) != 1:
        raise UnsupportedError(f"{describe(node)}: a constant of kind '{name}' is not supported")
    return onnx.numpy_helper.from_array(np.array(value, dtype), node.output[0])


def build_graph(graph: onnx.GraphProto) -> OnnxGraph:
    """Check a graph and bring its nodes into order.

    Raises
    ------
    InputError
        If tensors are made twice, or never, or in a circle.
    UnsupportedError
        If it has several inputs or outputs, or sparse weights.
    """
    if graph.sparse_initializer:
        raise UnsupportedError("the model has sparse weights, which are not supported")
    constants = {t.name: t for t in graph.initializer}
    constants |= {n.output[0]: constant_value(n) for n in graph.node if _is_constant(n)}
    inputs = [i for i in graph.input if i.name not in constants]
    if len(inputs) != 1:
        raise UnsupportedError(
            f"the model takes {len(inputs)} tensors; only models of one image are supported"
        )
    outputs = [o.name for o in graph.output]
    if len(outputs) != 1:
        raise UnsupportedError(
            f"the model returns {len(outputs)} values; only models of one output are supported"
        )
    found = OnnxGraph([], constants, inputs[0], outputs)
    _connect(found, graph)
    found.nodes = _ordered(found, graph)
    for node in found.nodes:
        for name in set(node.input) - {""}:
            found.readers.setdefault(name, []).append(node)
    return found


def _connect(found: OnnxGraph, graph: onnx.GraphProto) -> None:
    given = {*(t.name for t in graph.initializer), found.input.name}
    for node in graph.node:
        for name in filter(None, node.output):
            if name in given:
                raise InputError(f"{describe(node)} makes tensor '{name}', which exists already")
            given.add(name)
            if name not in found.constants:
                found.makers[name] = node


def _ordered(found: OnnxGraph, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that the output needs, as they stand in the file where that is an order to run in."""
    needed = _needed(found)
    nodes = [n for n in graph.node if any(n.output) and result_of(n) in needed]
    made = {"", *found.constants, found.input.name}
    for node in nodes:
        if not made.issuperset(node.input):
            return _sorted(found, nodes)
        made.update(node.output)
    return nodes


def _needed(found: OnnxGraph) -> set[str]:
    """First results of the nodes that the output needs."""
    needed: set[str] = set()
    waiting = [(name, "the model returns") for name in found.outputs]
    while waiting:
        name, reader = waiting.pop()
        if not name or name in found.constants or name == found.input.name:
            continue
        if name not in found.makers:
            raise InputError(f"{reader} tensor '{name}', which nothing makes")
        node = found.makers[name]
        if result_of(node) not in needed:
            needed.add(result_of(node))
            waiting.extend((i, f"{describe(node)} reads") for i in node.input)
    return needed


def _sorted(found: OnnxGraph, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    by_result = {result_of(n): n for n in nodes}
    reads = {
        key: [result_of(found.makers[i]) for i in node.input if i in found.makers]
        for key, node in by_result.items()
    }
    try:
        return [by_result[key] for key in TopologicalSorter(reads).static_order()]
    except CycleError as error:
        circle = ", ".join(dict.fromkeys(by_result[k].name or k for k in error.args[1]))
        raise InputError(f"the graph runs in a circle through {circle}") from error
