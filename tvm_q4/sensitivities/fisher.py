"""Diagonal empirical Fisher information times squared quantization error.

The information of a weight is the mean over images of its squared gradient, each image's own (the
square of a batch's mean gradient would vanish in a trained network), as in Fisher pruning: Theis et
al., "Faster gaze prediction with dense networks and Fisher pruning", 2018 (arXiv 1801.05787). For a
layer's input, the squared gradient and the squared error of the same image and element are
multiplied, as in Li et al., "BRECQ", ICLR 2021, section 3.3. The information stands in for the
Hessian, so that both metrics estimate the same loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from tvm_q4.sensitivities.gradients import LayerGradients, layer_gradients
from tvm_q4.sensitivities.metric import (
    WEIGHTS_ONLY,
    WITH_ACTIVATIONS,
    per_image,
    stacked,
    weight_errors,
)
from tvm_q4.sensitivities.network import BITS, FloatNetwork


class FisherMetric:
    """See the module; columns are ``w4``, ``w8`` and, with activations, ``a4``, ``a8``.

    Parameters
    ----------
    network : FloatNetwork
        Calibrated.
    activations : bool
        Whether the error of a layer's input counts too.
    """

    per_image = True

    def __init__(self, network: FloatNetwork, activations: bool) -> None:
        self.network, self.activations = network, activations
        self.sums = WITH_ACTIVATIONS if activations else WEIGHTS_ONLY
        self.deltas = weight_errors(network)

    def measure(self, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        """Return each image's sum of squared gradient times error: float64 [n, layers, columns]."""

        def of_cross_entropy(logits: Tensor) -> Tensor:
            return logits.softmax(1) - one_hot(y, logits.shape[1])

        columns = []
        for layer in layer_gradients(self.network, x, of_cross_entropy):
            columns.append(self._of_weight(layer))
            if self.activations:
                columns[-1] += [self._of_input(layer, bits) for bits in BITS]
        return stacked(columns)

    def enough(self, samples: Tensor) -> bool:
        """Return True: every image is looked at once."""
        return True

    def parts(self, samples: Tensor) -> dict[str, Tensor]:
        """Return the columns by name."""
        names = [f"{what}{bits}" for what in "wa" for bits in BITS]
        return dict(zip(names, samples.unbind(-1), strict=False))

    def details(self, samples: Tensor) -> list[dict[str, Any]]:
        """Return nothing further."""
        return [{} for _ in self.network.layers]

    def _of_weight(self, layer: LayerGradients) -> list[Tensor]:
        """Return the sums over a layer's weights, [n] for each number of bits."""
        deltas = [self.deltas[bits][layer.calls[0].index] for bits in BITS]
        chunks = [
            [per_image((gradients * delta).square()) for delta in deltas]
            for gradients in layer.of_weight()
        ]
        return [torch.cat(sums) for sums in zip(*chunks, strict=True)]

    def _of_input(self, layer: LayerGradients, bits: int) -> Tensor:
        """Return the sums over the elements of a layer's input, [n]."""
        total = torch.zeros(len(layer.inputs[0]), dtype=torch.float64)
        for call, gradient in zip(layer.calls, layer.inputs, strict=True):
            delta = self.network.quantized_input(call.index, bits, call.x) - call.x
            total += per_image((gradient * delta).square())
        return total
