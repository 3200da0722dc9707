"""Give a converted graph's constants readable names and drop those that nothing reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from tvm_q4.quantize import graph as g

LAYER_KEY = "q4_layer"


def name_constants(module: GraphModule) -> None:
    """Rename each layer's constants after the layer and remove unread ones.

    PT2E leaves ``_frozen_param<n>``, ``_scale_<n>`` and ``<layer>.weight_bias``, and keeps the
    float weights. Afterwards there are ``<layer>.weight`` (int8), ``<layer>.weight_scale``,
    ``<layer>.weight_zero_point`` and ``<layer>.bias``, all buffers. The layer's name is read from
    ``node.meta[LAYER_KEY]``, which `Q4Quantizer.annotate` writes.
    """
    for node in module.graph.nodes:
        name = node.meta.get(LAYER_KEY)
        if name is None or not g.called(node, g.WEIGHTED):
            continue
        dequantize = node.args[1]
        suffixes = ("weight", "weight_scale", "weight_zero_point")
        for source, suffix in zip(dequantize.args[:3], suffixes, strict=True):
            _rename(module, source, f"{name}.{suffix}")
        if len(node.args) > 2 and node.args[2] is not None:
            _rename(module, node.args[2], f"{name}.bias")
    _drop_unread(module)
    module.recompile()


def _rename(module: GraphModule, node: Node, name: str) -> None:
    """Store the constant that `node` reads as buffer `name` and let `node` read that."""
    assert isinstance(node.target, str)
    stored = read_constant(module, node.target).detach()
    value = stored.clone(memory_format=torch.contiguous_format)
    path, _, attribute = name.rpartition(".")
    owner: nn.Module = module
    for part in filter(None, path.split(".")):
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if hasattr(owner, attribute):
        delattr(owner, attribute)
    owner.register_buffer(attribute, value)
    node.target = name


def read_constant(module: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer at the path `name`."""
    path, _, attribute = name.rpartition(".")
    value = getattr(module.get_submodule(path), attribute)
    assert isinstance(value, Tensor)
    return value


def _drop_unread(module: GraphModule) -> None:
    """Remove parameters and buffers that no node of the graph reads."""
    module.graph.eliminate_dead_code()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    stored = [*dict(module.named_parameters()), *dict(module.named_buffers())]
    for name in stored:
        if name not in read:
            path, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(path), attribute)
