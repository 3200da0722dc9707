"""Gradients of a function of the logits, image by image, in weights and inputs of all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tvm_q4.sensitivities.network import FloatNetwork, LayerCall

_CHUNK = 16
"""Images whose weight gradients are held at a time."""


@dataclass
class LayerGradients:
    """A layer's part of a pass; lists have an entry for each time that the layer is called.

    Parameters
    ----------
    calls : list of LayerCall
    outputs, inputs : list of Tensor
        Gradients of what the layer makes and of what it reads, [n, ...].
    """

    calls: list[LayerCall] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def of_weight(self) -> Iterator[Tensor]:
        """Yield each image's gradient of the weight, [m, *weight.shape], a few images at a time."""
        for start in range(0, len(self.outputs[0]), _CHUNK):
            part = slice(start, start + _CHUNK)
            pairs = zip(self.calls, self.outputs, strict=True)
            found = [_weight_gradients(call, call.x[part], grad[part]) for call, grad in pairs]
            yield torch.stack(found).sum(0) if len(found) > 1 else found[0]


def layer_gradients(
    network: FloatNetwork, x: Tensor, cotangent: Callable[[Tensor], Tensor]
) -> list[LayerGradients]:
    """Run the network and differentiate.

    Parameters
    ----------
    network : FloatNetwork
    x : Tensor
        Images [n, C, H, W].
    cotangent : callable
        From the logits [n, K] to the gradient in these, [n, K].

    Returns
    -------
    list of LayerGradients
        By layer. The gradient of an input is what comes back through this layer alone.
    """
    found = [LayerGradients() for _ in network.layers]
    results: list[list[Tensor]] = [[] for _ in network.layers]
    edges: list[list[Tensor]] = [[] for _ in network.layers]

    def hook(call: LayerCall) -> Tensor:
        value = edge(call.x)
        out = call.compute(value, call.layer.weight)
        call = LayerCall(call.index, call.layer, value.detach(), call.compute)
        found[call.index].calls.append(call)
        results[call.index].append(out)
        edges[call.index].append(value)
        return out

    logits = network.run(x, hook)
    wanted = [tensor for lists in (results, edges) for tensors in lists for tensor in tensors]
    flow = torch.autograd.grad(logits, wanted, cotangent(logits.detach()), materialize_grads=True)
    gradients = iter(flow)
    for layer, tensors in zip(found, results, strict=True):
        layer.outputs = [next(gradients) for _ in tensors]
    for layer, tensors in zip(found, edges, strict=True):
        layer.inputs = [next(gradients) for _ in tensors]
    return found


def edge(x: Tensor) -> Tensor:
    """Return `x` as a tensor of its own, by which other readers of `x` are not meant."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def _weight_gradients(call: LayerCall, x: Tensor, gradient: Tensor) -> Tensor:
    """Return each image's gradient of the weight, [n, ...], from that of the layer's output."""

    def of_image(x: Tensor, gradient: Tensor) -> Tensor:
        def compute(weight: Tensor) -> Tensor:
            return call.compute(x[None], weight)

        _, pull = torch.func.vjp(compute, call.layer.weight)
        return pull(gradient[None])[0]

    return torch.func.vmap(of_image)(x, gradient)
