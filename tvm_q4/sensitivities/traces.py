"""Hutchinson's estimate of the traces of the loss's Hessian, a block a layer, in two ways.

With a Rademacher vector v, the expectation of ``v . H v`` is H's trace (Hutchinson, 1990). The loss
is the cross-entropy's mean over images. In the input of a layer the Hessian has one block an image,
so that there the trace is the mean over images of the trace of an image's own Hessian.

`hessian_vector` takes v in the layer's weights or input and differentiates twice. Each layer has a
product of its own: one product with vectors for all layers at once is unbiased too, but the blocks
between layers make its variance some 30 times larger in ResNet-20, for a quarter of the time.

`gauss_newton` takes v in the logits. The Hessian is ``J' L L' J`` plus a term with the second
derivatives of the logits, J being their Jacobian and ``L L' = diag(p) - p p'`` the cross-entropy's
Hessian in the logits (Martens, "New Insights and Perspectives on the Natural Gradient Method", JMLR
2020, section 8). In a network of convolutions, linear layers, ReLUs and pools, the logits are
piecewise linear in one layer's weights, or input, while the other layers stay, so that in the
blocks on the diagonal that term is zero: both ways estimate the same trace. This one is never
negative, needs one backward pass for all layers, and its variance is far smaller since images and
layers do not mix. For a layer that is called more than once it is an approximation.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from tvm_q4.sensitivities.gradients import edge, layer_gradients
from tvm_q4.sensitivities.network import FloatNetwork, LayerCall


def hessian_vector(
    network: FloatNetwork, x: Tensor, y: Tensor, generator: Generator, activations: bool
) -> Tensor:
    """Return ``v . H v`` by Hessian-vector products (double backward).

    Parameters
    ----------
    network : FloatNetwork
    x, y : Tensor
        Images [n, C, H, W] and labels [n].
    generator : torch.Generator
    activations : bool
        For layers' inputs too.

    Returns
    -------
    Tensor
        float64 [layers, 1 or 2]: weights, inputs.
    """
    weights = [layer.weight.clone().requires_grad_() for layer in network.layers]
    variables = [(i, 0, weight) for i, weight in enumerate(weights)]

    def hook(call: LayerCall) -> Tensor:
        value = call.x
        if activations:
            value = edge(value)
            variables.append((call.index, 1, value))
        return call.compute(value, weights[call.index])

    loss = cross_entropy(network.run(x, hook), y)
    tensors = [tensor for _, _, tensor in variables]
    first = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
    traces = torch.zeros(len(network.layers), 1 + activations, dtype=torch.float64)
    for (layer, column, tensor), gradient in zip(variables, first, strict=True):
        probe = rademacher(tensor, generator)
        if gradient.requires_grad:
            (product,) = torch.autograd.grad(
                gradient, tensor, probe, retain_graph=True, materialize_grads=True
            )
            traces[layer, column] += (probe.double() * product.double()).sum()
    return traces


def gauss_newton(
    network: FloatNetwork, x: Tensor, y: Tensor, generator: Generator, activations: bool
) -> Tensor:
    """Return the mean over images of ``|J' L v|^2``; see `hessian_vector` (`y` is not used)."""

    def weighted_probe(logits: Tensor) -> Tensor:
        p = logits.softmax(1)
        scaled = p.sqrt() * rademacher(p, generator)
        return scaled - p * scaled.sum(1, keepdim=True)

    traces = torch.zeros(len(network.layers), 1 + activations, dtype=torch.float64)
    for i, layer in enumerate(layer_gradients(network, x, weighted_probe)):
        traces[i, 0] = sum(gradients.double().square().sum() for gradients in layer.of_weight())
        if activations:
            traces[i, 1] = sum(gradient.double().square().sum() for gradient in layer.inputs)
    return traces / len(x)


def rademacher(like: Tensor, generator: Generator) -> Tensor:
    """Return a tensor of -1 and 1 of the shape and dtype of `like`."""
    bits = torch.randint(0, 2, like.shape, generator=generator)
    return bits.mul_(2).sub_(1).to(like.dtype)


ESTIMATORS = {"gauss-newton": gauss_newton, "hessian-vector": hessian_vector}
