"""What all metrics share: samples of their values, and how these add up to sensitivities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from tvm_q4.sensitivities.network import BITS, FloatNetwork

WEIGHTS_ONLY: Mapping[str, tuple[str, ...]] = {"4": ("w4",), "8": ("w8",), "w4a8": ("w4",)}
"""The parts whose sum is a precision's sensitivity, where activations do not count."""

WITH_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "4": ("w4", "a4"), "8": ("w8", "a8"), "w4a8": ("w4", "a8")
}  # fmt: skip
"""Likewise, where they do, for metrics to which weights and activations contribute apart."""


class Metric(Protocol):
    """One way to tell a layer's sensitivity.

    Attributes
    ----------
    per_image : bool
        Whether a sample is an image; else it is a pass over all images.
    sums : mapping of str to tuple of str
        The parts whose sum is the sensitivity, by precision.
    """

    per_image: bool
    sums: Mapping[str, tuple[str, ...]]

    def measure(self, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        """Return float64 [n or 1, layers, columns]: a row for each image, or their mean.

        Parameters
        ----------
        x : Tensor
            Images, float32 [n, C, H, W].
        y : Tensor
            Labels, int64 [n]; empty where the metric needs none.
        generator : torch.Generator
            The only source of what is random.
        """

    def enough(self, samples: Tensor) -> bool:
        """Return whether the samples [S, layers, columns] of whole passes are enough."""

    def parts(self, samples: Tensor) -> dict[str, Tensor]:
        """Return parts of sensitivities, ``w4``, ``w8``, ``a4``, ...: float64 [S, layers]."""

    def details(self, samples: Tensor) -> list[dict[str, Any]]:
        """Return further keys of each layer's row."""


def standard_error(samples: Tensor) -> Tensor:
    """Return the standard error of the mean over axis 0, of at least two samples."""
    return samples.std(0) / len(samples) ** 0.5


def weight_errors(network: FloatNetwork) -> dict[int, list[Tensor]]:
    """Return what quantization adds to each weight, by bits: tensors of the weights' shapes."""
    return {
        bits: [network.quantized_weight(i, bits) - x.weight for i, x in enumerate(network.layers)]
        for bits in BITS
    }


def per_image(values: Tensor) -> Tensor:
    """Return the sum of each image's values, float64 [n]."""
    return values.flatten(1).sum(1).double()


def stacked(columns: list[list[Tensor]]) -> Tensor:
    """Return columns, by layer, of [n] each as [n, layers, columns]."""
    return torch.stack([torch.stack(layer, -1) for layer in columns], 1)
