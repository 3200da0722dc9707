"""Units of a prepared graph: the parts between points at which a single tensor is alive.

In a plain chain a unit is a layer with what follows it, in a residual network it is a block: the
granularity at which Li et al. reconstruct ("BRECQ", ICLR 2021, section 3.2). Units run one after
the other, each from the output of the one before, so a calibration set passes through the network
once, however many times each unit is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from tvm_q4.quantize import graph as g

_SYM_SIZE = torch.ops.aten.sym_size.int
_VIEW, _RESHAPE = torch.ops.aten.view.default, torch.ops.aten.reshape.default
_PART = 64
"""Images that run at a time where no gradient is wanted."""


@dataclass(frozen=True)
class Unit:
    """Part of a prepared graph from one tensor to another.

    Parameters
    ----------
    source, target : Node
        The tensor that it reads and the one that it makes.
    layers : tuple of Node
        Its convolutions and linear layers with constant weights, in graph order.
    module : GraphModule
        Runs it; parameters and quantizers are those of the whole graph, not copies.
    fixed_batch : int or None
        The batch size that the graph demands, if it does.
    """

    source: Node
    target: Node
    layers: tuple[Node, ...]
    module: GraphModule
    fixed_batch: int | None

    def run(self, x: Tensor) -> Tensor:
        """Return the output for all of `x` [N, ...], computed in parts and without gradients."""
        with torch.no_grad():
            return torch.cat([self.module(part) for part in parts(x, self.fixed_batch)])


def units_of(prepared: GraphModule) -> list[Unit]:
    """Cut a prepared graph; each unit has a layer, but for a network that has none.

    A unit begins in front of the quantizers that read its source, so these belong to it.
    """
    (source,) = (node for node in prepared.graph.nodes if node.op == "placeholder")
    fixed = fixed_batch(prepared)
    cuts = _cuts(prepared.graph)
    between: list[Node] = []
    units: list[Unit] = []
    for node in prepared.graph.nodes:
        if g.is_weighted(node):
            between.append(node)
        if node in cuts and (between or node is cuts[-1]):
            module = subgraph(prepared, source, (node,))
            units.append(Unit(source, node, tuple(between), module, fixed))
            source, between = node, []
    return units


def subgraph(prepared: GraphModule, source: Node, outputs: Sequence[Node]) -> GraphModule:
    """Return the part of `prepared` that computes `outputs` from `source`.

    It returns a tensor for one output, else a tuple, and shares parameters and quantizers with
    `prepared`. Batch sizes that the graph takes from its input are taken from `source`, and views
    are reshapes, so that tensors may be in channels-last order, which convolutions run faster in.
    """
    graph = Graph()
    copies: dict[Node, Node] = {source: graph.placeholder("source")}
    needed = _ancestors(outputs, source)
    for node in prepared.graph.nodes:
        if node in needed and _is_batch_size(node):
            copies[node] = graph.call_function(_SYM_SIZE, (copies[source], 0))
        elif node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            if g.called(node, (_VIEW,)):
                copies[node].target = _RESHAPE
    results = [copies[node] for node in outputs]
    graph.output(results[0] if len(results) == 1 else tuple(results))
    return GraphModule(prepared, graph)


def fixed_batch(module: GraphModule) -> int | None:
    """Return the batch size that a captured graph demands, None where it takes any."""
    (node,) = (node for node in module.graph.nodes if node.op == "placeholder")
    size = node.meta["val"].shape[0]
    return size if isinstance(size, int) else None


def parts(x: Tensor, size: int | None) -> tuple[Tensor, ...]:
    """Split `x` [N, ...] into batches of `size`, or of a size that suits the machine."""
    return x.split(size or _PART)


@torch.no_grad()
def channel_means(
    module: Callable[[Tensor], tuple[Tensor, ...] | Tensor], x: Tensor, size: int | None
) -> list[Tensor]:
    """Return the means by channel (axis 1 of images, else the last) of each output: float64 [C].

    Parameters
    ----------
    module : callable
        From a batch to a tensor or several.
    x : Tensor
        Its input [N, ...], split as by `parts`.
    size : int or None
        See `parts`.
    """
    sums: list[Tensor] = []
    for part in parts(x, size):
        outputs = module(part)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        means = [_by_channel(y).mean(1) * len(part) for y in outputs]
        sums = [a + b for a, b in zip(sums, means, strict=True)] if sums else means
    return [total / len(x) for total in sums]


def _by_channel(y: Tensor) -> Tensor:
    return y.double().movedim(1 if y.ndim == 4 else -1, 0).flatten(1)


def _cuts(graph: Graph) -> list[Node]:
    """Return the tensors that are alone alive when made and that a quantizer or nobody reads."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    (output,) = (node for node in graph.nodes if node.op == "output")
    cuts, last = [], -1
    for node in graph.nodes:
        if node is output or g.is_made_of_constants(node) or _is_batch_size(node):
            continue
        alone = last <= order[node]
        last = max([last, *(order[user] for user in node.users if not _is_batch_size(user))])
        if alone and node.op != "placeholder" and any(_starts_unit(u) for u in node.users):
            cuts.append(node)
    return cuts


def _starts_unit(user: Node) -> bool:
    """Return whether a reader is a quantizer, which prepared graphs hold as modules, or the end."""
    return user.op in ("call_module", "output")


def _ancestors(outputs: Sequence[Node], source: Node) -> set[Node]:
    """Return the nodes that `outputs` need, up to `source`, which is not among them."""
    needed: set[Node] = set()
    pending = list(outputs)
    while pending:
        node = pending.pop()
        if node is source or node in needed:
            continue
        needed.add(node)
        if not _is_batch_size(node):
            pending += node.all_input_nodes
    return needed


def _is_batch_size(node: Node) -> bool:
    return g.called(node, (_SYM_SIZE,)) and node.args[1] == 0
