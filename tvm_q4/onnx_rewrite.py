"""Rewrites of an ONNX graph that let onnxruntime run it and show its quantized tensors.

None changes a value: each puts an operator's own definition, in operators that onnxruntime has, in
its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvm_q4.errors import UnsupportedError

QONNX_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas")
_GIVEN = "/given"
_INTEGERS = "/integers"
_WIDER = {
    onnx.TensorProto.INT4: (onnx.TensorProto.INT8, np.int8, -8, 7),
    onnx.TensorProto.UINT4: (onnx.TensorProto.UINT8, np.uint8, 0, 15),
}


def expand_quant(model: onnx.ModelProto) -> dict[str, str]:
    """Replace QONNX ``Quant`` nodes, which onnxruntime does not have, by what they compute.

    ``y = (round(clip(x / scale + zero, lo, hi)) - zero) * scale``, rounding half to even (QONNX,
    Pappalardo et al. 2022, section 4.1).

    Returns
    -------
    dict of str to str
        Name of the float tensor that holds the integers, by the name of each node's output.
    """
    graph, integers = model.graph, {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain in QONNX_DOMAINS and node.op_type in ("Quant", "IntQuant"):
            nodes += _quant_nodes(graph, node)
            integers[node.output[0]] = node.output[0] + _INTEGERS
        else:
            nodes.append(node)
    _replace(graph.node, nodes)
    _replace(model.opset_import, [o for o in model.opset_import if o.domain not in QONNX_DOMAINS])
    return integers


def _quant_nodes(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    rounding = attrs.get("rounding_mode", b"ROUND")
    if rounding.upper() not in (b"ROUND", b"HALF_EVEN"):
        msg = f"node '{node.name}' (Quant): rounding mode {rounding.decode()!r} in onnxruntime"
        raise UnsupportedError(f"{msg}; only ROUND can be checked")
    x, scale, zero, bits = node.input
    out = node.output[0]
    count = int(_initializer(graph, bits, node).item())
    signed, narrow = bool(attrs.get("signed", 1)), bool(attrs.get("narrow", 0))
    low = -(1 << (count - 1)) + narrow if signed else 0
    high = (1 << (count - 1)) - 1 if signed else (1 << count) - 1 - narrow
    for part, value in (("low", low), ("high", high)):
        graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{out}/{part}"))
    return [
        helper.make_node("Div", [x, scale], [f"{out}/steps"]),
        helper.make_node("Add", [f"{out}/steps", zero], [f"{out}/shifted"]),
        helper.make_node("Clip", [f"{out}/shifted", f"{out}/low", f"{out}/high"], [f"{out}/held"]),
        helper.make_node("Round", [f"{out}/held"], [out + _INTEGERS]),
        helper.make_node("Sub", [out + _INTEGERS, zero], [f"{out}/centred"]),
        helper.make_node("Mul", [f"{out}/centred", scale], [out]),
    ]


def _initializer(graph: onnx.GraphProto, name: str, node: onnx.NodeProto) -> np.ndarray:
    for tensor in graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    for other in graph.node:
        if name in other.output and other.op_type == "Constant":
            return numpy_helper.to_array(other.attribute[0].t)
    msg = f"node '{node.name}' ({node.op_type}): input '{name}' is no constant"
    raise UnsupportedError(f"{msg}; export the model with constant bit widths")


def widen_int4(model: onnx.ModelProto) -> None:
    """Let activations of type INT4 and UINT4, which Python cannot take, be 8-bit ones of 4 bits.

    A ``Clip`` to the 4-bit range behind the 8-bit ``QuantizeLinear`` gives the same integers.
    Weights keep their type.
    """
    graph = model.graph
    types = {t.name: t.data_type for t in graph.initializer}
    widened: dict[str, int] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in types:
            kind = _quantized_type(node, types)
            if kind in _WIDER:
                nodes += _widened(graph, node, kind)
                widened[node.output[0]] = kind
                continue
        if node.op_type == "DequantizeLinear" and node.input[0] in widened and len(node.input) > 2:
            node.input[2] = _widened_zero(graph, node, widened[node.input[0]])
        nodes.append(node)
    _replace(graph.node, nodes)


def _quantized_type(node: onnx.NodeProto, types: dict[str, int]) -> int:
    if len(node.input) > 2 and node.input[2]:
        return types.get(node.input[2], onnx.TensorProto.UINT8)
    given = [a.i for a in node.attribute if a.name == "output_dtype"]
    return given[0] if given else onnx.TensorProto.UINT8


def _widened(graph: onnx.GraphProto, node: onnx.NodeProto, kind: int) -> list[onnx.NodeProto]:
    _, dtype, low, high = _WIDER[kind]
    out = node.output[0]
    for part, value in (("low", low), ("high", high)):
        graph.initializer.append(numpy_helper.from_array(dtype(value), f"{out}/{part}"))
    wide = onnx.NodeProto()
    wide.CopyFrom(node)
    _replace(wide.attribute, [a for a in wide.attribute if a.name != "output_dtype"])
    _replace_text(wide.input, [*node.input[:2], _widened_zero(graph, node, kind)])
    _replace_text(wide.output, [f"{out}/wide"])
    clip = helper.make_node("Clip", [f"{out}/wide", f"{out}/low", f"{out}/high"], [out])
    return [wide, clip]


def _widened_zero(graph: onnx.GraphProto, node: onnx.NodeProto, kind: int) -> str:
    """Name of a new zero point of 8 bits with the old one's values (0 where it has none)."""
    _, dtype, _, _ = _WIDER[kind]
    name = f"{node.output[0]}/zero"
    old = node.input[2] if len(node.input) > 2 else ""
    values = _initializer(graph, old, node).astype(dtype) if old else _zeros(graph, node, dtype)
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _zeros(graph: onnx.GraphProto, node: onnx.NodeProto, dtype: Any) -> np.ndarray:
    return np.zeros(_initializer(graph, node.input[1], node).shape, dtype)


def expose(model: onnx.ModelProto, tensors: Iterable[str]) -> None:
    """Make `tensors` outputs of the graph, besides those it has."""
    present = {o.name for o in model.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))


def feed(
    model: onnx.ModelProto, dtypes: Mapping[str, np.dtype]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Let every reader of a tensor read a new input of the graph in its place.

    Each layer then computes from what is given, while the tensors themselves stay outputs.

    Parameters
    ----------
    model : onnx.ModelProto
        Not changed.
    dtypes : mapping of str to dtype
        Element type of each tensor to be given.

    Returns
    -------
    model : onnx.ModelProto
        The changed copy.
    inputs : dict of str to str
        Name of the new input by the name of the tensor.
    """
    fed = onnx.ModelProto()
    fed.CopyFrom(model)
    inputs = {name: name + _GIVEN for name in dtypes}
    for node in fed.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = inputs.get(name, name)
    for name, given in inputs.items():
        kind = helper.np_dtype_to_tensor_dtype(dtypes[name])
        fed.graph.input.append(helper.make_tensor_value_info(given, kind, None))
    return fed, inputs


def _replace(field: Any, values: list[Any]) -> None:
    copies = [type(v)() for v in values]
    for copy, value in zip(copies, values, strict=True):
        copy.CopyFrom(value)
    del field[:]
    field.extend(copies)


def _replace_text(field: Any, values: list[str]) -> None:
    del field[:]
    field.extend(values)
