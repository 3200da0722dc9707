"""Mean Hessian trace times squared quantization error: the metric of HAWQ-V2 and HAWQ-V3.

Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks", NeurIPS 2020
(arXiv 1911.03852), equation 2.11 of the arXiv text for the metric, and what it says of Hutchinson's
estimate and of activations; Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization", ICML 2021
(arXiv 2011.10680), where it is the integer program's objective.

The input of a layer counts in the same way, with the trace of an image's own Hessian in that input
and the squared error of an image's input, both as means over images. Thus both parts of the sum
estimate the same thing, twice the loss that the quantization error adds to second order. `traces`
has the estimates of the trace.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Generator, Tensor

from tvm_q4.sensitivities.metric import (
    WEIGHTS_ONLY,
    WITH_ACTIVATIONS,
    standard_error,
    weight_errors,
)
from tvm_q4.sensitivities.network import BITS, FloatNetwork, LayerCall
from tvm_q4.sensitivities.traces import ESTIMATORS

_FEWEST = 5
"""Passes below which a standard error is not trusted."""

logger = logging.getLogger(__name__)


class HessianMetric:
    """See the module; columns are the traces of weights and, with activations, of inputs.

    Parameters
    ----------
    network : FloatNetwork
        Calibrated.
    images : iterable of Tensor
        Batches of all images.
    activations : bool
        Whether the error of a layer's input counts too.
    estimator : {"gauss-newton", "hessian-vector"}
        How traces are estimated; see `traces`.
    tolerance : float
        The relative standard error of every trace at which there are enough passes.
    """

    per_image = False

    def __init__(
        self,
        network: FloatNetwork,
        images: Iterable[Tensor],
        activations: bool,
        estimator: str,
        tolerance: float,
    ) -> None:
        self.network, self.tolerance = network, tolerance
        self.estimate = ESTIMATORS[estimator]
        self.columns = ("weight", "activation") if activations else ("weight",)
        self.sums = WITH_ACTIVATIONS if activations else WEIGHTS_ONLY
        deltas = weight_errors(network)
        self.errors = {
            "weight": {b: _column([d.double().square().sum() for d in deltas[b]]) for b in BITS}
        }
        self.sizes = {"weight": _column([x.weight.numel() for x in network.layers])}
        if activations:
            self.errors["activation"], self.sizes["activation"] = _input_errors(network, images)

    def measure(self, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        """Return one estimate of each trace: float64 [1, layers, columns]."""
        return self.estimate(self.network, x, y, generator, len(self.columns) > 1)[None]

    def enough(self, samples: Tensor) -> bool:
        """Return whether every trace's standard error is within the tolerance."""
        if len(samples) < _FEWEST:
            return False
        return bool((standard_error(samples) <= self.tolerance * samples.mean(0).abs()).all())

    def parts(self, samples: Tensor) -> dict[str, Tensor]:
        """Return traces divided by sizes, times squared errors."""
        return {
            f"{what[0]}{bits}": samples[..., i] / self.sizes[what] * self.errors[what][bits]
            for i, what in enumerate(self.columns)
            for bits in BITS
        }

    def details(self, samples: Tensor) -> list[dict[str, Any]]:
        """Return the mean trace and the squared errors of each layer, by what they belong to."""
        rows: list[dict[str, Any]] = [{"hessian": {}} for _ in self.network.layers]
        for i, what in enumerate(self.columns):
            mean = (samples[..., i].mean(0) / self.sizes[what]).tolist()
            error = (standard_error(samples[..., i]) / self.sizes[what]).tolist()
            for k, (row, layer) in enumerate(zip(rows, self.network.layers, strict=True)):
                bits = (8,) if layer.fixed else BITS
                row["hessian"][what] = {
                    "mean_trace": mean[k],
                    "standard_error": error[k],
                    "squared_error": {str(b): float(self.errors[what][b][k]) for b in bits},
                }
                if mean[k] < 0:
                    logger.warning(
                        "layer '%s': the trace for its %s is estimated as negative (%.3g, standard "
                        "error %.3g) and counts as 0", layer.name, what, mean[k], error[k],
                    )  # fmt: skip
        return rows


def _input_errors(
    network: FloatNetwork, images: Iterable[Tensor]
) -> tuple[dict[int, Tensor], Tensor]:
    """Return, of one image, the squared error of each layer's input by bits, and its elements."""
    errors = {bits: torch.zeros(len(network.layers), dtype=torch.float64) for bits in BITS}
    sizes = torch.zeros(len(network.layers), dtype=torch.float64)
    total = 0

    def hook(call: LayerCall) -> Tensor:
        for bits in BITS:
            delta = network.quantized_input(call.index, bits, call.x) - call.x
            errors[bits][call.index] += delta.double().square().sum()
        sizes[call.index] += call.x.numel()
        return call.compute(call.x, call.layer.weight)

    with torch.no_grad():
        for x in images:
            network.run(x, hook)
            total += len(x)
    return {bits: error / total for bits, error in errors.items()}, sizes / total


def _column(values: Iterable[Any]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)
