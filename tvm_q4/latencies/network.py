"""A network's kernels by the layer that they belong to, and which layer reads whose result.

A layer here is a convolution or a linear layer: what has bits of its own. Every other kernel
(a pool, a concat, an add that stands alone) belongs to the layer whose result it works on, so that
what a change of bits does to it is found with that layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm_q4.relay_passes.lower_to_tir import LoweredCall

LAYER_KINDS = ("conv2d", "dense")


@dataclass(frozen=True)
class Kernels:
    """A layer's own kernel, and those that follow it and belong to no layer of their own."""

    own: LoweredCall
    rest: tuple[LoweredCall, ...]

    @property
    def all(self) -> tuple[LoweredCall, ...]:
        """Both."""
        return (self.own, *self.rest)


@dataclass(frozen=True)
class Readers:
    """Who reads whose result.

    Attributes
    ----------
    groups : tuple of tuples of str
        Layers that read one tensor, in network order; every layer is in one.
    after : mapping of str to tuple of int
        The groups that read a layer's result, by their index; through pools and the like too.
        A residual skip is no reader: it takes the residual stream's bits.
    """

    groups: tuple[tuple[str, ...], ...]
    after: dict[str, tuple[int, ...]]


def kernels_by_layer(calls: Sequence[LoweredCall]) -> dict[str, Kernels]:
    """The kernels of each layer, in the order of the network.

    What runs before any layer (the quantization of the input) belongs to the first one.

    Parameters
    ----------
    calls : sequence of LoweredCall
        Of one network, in the order of execution.
    """
    own = {c.layer.name: c for c in calls if c.layer.kind in LAYER_KINDS}
    if not own:
        return {}
    first = next(iter(own))
    rest: dict[str, list[LoweredCall]] = {name: [] for name in own}
    owners: dict[str, str] = {}
    for call in calls:
        owner = call.layer.name
        if owner not in own:
            found = (owners[t.name] for t in call.layer.inputs if t.name in owners)
            owner = next(found, first)
            rest[owner].append(call)
        owners |= {t.name: owner for _, t in call.layer.outputs}
    return {name: Kernels(call, tuple(rest[name])) for name, call in own.items()}


def readers(calls: Sequence[LoweredCall]) -> Readers:
    """Who reads whose result, of a network whose layers have the same bits.

    Parameters
    ----------
    calls : sequence of LoweredCall
        Of one network, in the order of execution.
    """
    groups: dict[str, list[str]] = {}
    makers: dict[str, tuple[str, ...]] = {}
    after: dict[str, list[str]] = {}
    for call in calls:
        layer = call.layer
        if layer.kind in LAYER_KINDS:
            made_by: tuple[str, ...] = (layer.name,)
            after[layer.name] = []
            tensor = layer.data.name
            groups.setdefault(tensor, []).append(layer.name)
            for maker in makers.get(tensor, ()):
                if tensor not in after[maker]:
                    after[maker].append(tensor)
        else:
            sources = (m for t in layer.inputs for m in makers.get(t.name, ()))
            made_by = tuple(dict.fromkeys(sources))
        makers |= {t.name: made_by for _, t in layer.outputs}
    index = {tensor: i for i, tensor in enumerate(groups)}
    return Readers(
        tuple(tuple(group) for group in groups.values()),
        {name: tuple(index[t] for t in tensors) for name, tensors in after.items()},
    )
