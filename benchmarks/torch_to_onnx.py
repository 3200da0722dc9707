"""Write a torch ResNet as a float ONNX graph, batch normalisation folded, without onnxscript."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from tvm_q4.errors import UnsupportedError

OPSET = 17
IR_VERSION = 10


@dataclass
class GraphWriter:
    """ONNX nodes and initializers in the making; `values` maps fx nodes to ONNX tensor names."""

    modules: dict[str, nn.Module]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    values: dict[fx.Node, str] = field(default_factory=dict)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add an initializer; returns its name."""
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def emit(self, node: fx.Node, op_type: str, inputs: list[str], **attributes: Any) -> None:
        """Add an ONNX node that computes the fx node."""
        self.nodes.append(helper.make_node(op_type, inputs, [node.name], node.name, **attributes))
        self.values[node] = node.name

    def inputs(self, node: fx.Node) -> list[str]:
        """ONNX names of the tensors that the fx node reads."""
        return [self.values[arg] for arg in node.args if isinstance(arg, fx.Node)]


def torch_to_onnx(network: nn.Module, shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    """Export a network of convolutions, batch norms, ReLUs, pools, adds and linear layers.

    Parameters
    ----------
    network : nn.Module
        Network in eval mode that torch.fx can trace, such as torchvision's ResNets.
    shape : (int, int, int, int)
        Input shape, NCHW; the graph is static.

    Returns
    -------
    onnx.ModelProto
        Float32 graph from ``input`` to ``logits``.

    Raises
    ------
    UnsupportedError
        If the network has another operator.
    """
    traced = fx.symbolic_trace(network.eval())
    writer = GraphWriter(dict(traced.named_modules()))
    with torch.no_grad():
        for node in traced.graph.nodes:
            _export_node(writer, node)
        classes = network(torch.zeros(1, *shape[1:])).shape[1]
    graph = helper.make_graph(
        writer.nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (shape[0], classes))],
        writer.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _export_node(writer: GraphWriter, node: fx.Node) -> None:
    if node.op == "placeholder":
        writer.values[node] = "input"
    elif node.op == "output":
        writer.nodes.append(helper.make_node("Identity", writer.inputs(node), ["logits"]))
    elif node.op == "call_module":
        module = writer.modules[node.target]
        _find(_MODULES, type(module), node)(writer, node, module)
    else:
        _find(_FUNCTIONS, node.target, node)(writer, node)


def _find(table: dict[Any, Callable[..., None]], key: Any, node: fx.Node) -> Callable[..., None]:
    if key not in table:
        raise UnsupportedError(f"node '{node.name}': no ONNX form for {key}")
    return table[key]


def _conv(writer: GraphWriter, node: fx.Node, conv: nn.Conv2d) -> None:
    weight = conv.weight.double().numpy()
    bias = np.zeros(conv.out_channels) if conv.bias is None else conv.bias.double().numpy()
    norm = _only_batch_norm_user(writer, node)
    if norm is not None:
        factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).double().numpy()
        weight = weight * factor[:, None, None, None]
        mean = norm.running_mean.double().numpy()
        bias = (bias - mean) * factor + norm.bias.double().numpy()
    inputs = [
        *writer.inputs(node),
        writer.constant(f"{node.name}.weight", weight.astype(np.float32)),
        writer.constant(f"{node.name}.bias", bias.astype(np.float32)),
    ]
    writer.emit(
        node,
        "Conv",
        inputs,
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[*conv.padding, *conv.padding],
        dilations=list(conv.dilation),
        group=conv.groups,
    )


def _only_batch_norm_user(writer: GraphWriter, node: fx.Node) -> nn.BatchNorm2d | None:
    users = [writer.modules.get(str(u.target)) for u in node.users if u.op == "call_module"]
    if len(node.users) == 1 and users and isinstance(users[0], nn.BatchNorm2d):
        return users[0]
    return None


def _batch_norm(writer: GraphWriter, node: fx.Node, _module: nn.Module) -> None:
    producer = node.args[0]
    if not isinstance(writer.modules.get(str(producer.target)), nn.Conv2d):
        raise UnsupportedError(f"node '{node.name}': batch norm that follows no convolution")
    writer.values[node] = writer.values[producer]


def _relu(writer: GraphWriter, node: fx.Node, _module: nn.Module | None = None) -> None:
    writer.emit(node, "Relu", writer.inputs(node))


def _max_pool(writer: GraphWriter, node: fx.Node, pool: nn.MaxPool2d) -> None:
    writer.emit(
        node,
        "MaxPool",
        writer.inputs(node),
        kernel_shape=[pool.kernel_size] * 2,
        strides=[pool.stride] * 2,
        pads=[pool.padding] * 4,
    )


def _global_average_pool(writer: GraphWriter, node: fx.Node, pool: nn.AdaptiveAvgPool2d) -> None:
    if pool.output_size not in (1, (1, 1)):
        raise UnsupportedError(f"node '{node.name}': average pool to {pool.output_size}")
    writer.emit(node, "GlobalAveragePool", writer.inputs(node))


def _linear(writer: GraphWriter, node: fx.Node, linear: nn.Linear) -> None:
    inputs = [
        *writer.inputs(node),
        writer.constant(f"{node.name}.weight", linear.weight.numpy()),
        writer.constant(f"{node.name}.bias", linear.bias.numpy()),
    ]
    writer.emit(node, "Gemm", inputs, transB=1)


def _add(writer: GraphWriter, node: fx.Node) -> None:
    writer.emit(node, "Add", writer.inputs(node))


def _flatten(writer: GraphWriter, node: fx.Node) -> None:
    writer.emit(node, "Flatten", writer.inputs(node), axis=1)


_MODULES: dict[type, Callable[..., None]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _global_average_pool,
    nn.Linear: _linear,
}
_FUNCTIONS: dict[Any, Callable[..., None]] = {
    operator.add: _add,
    operator.iadd: _add,
    torch.flatten: _flatten,
}
