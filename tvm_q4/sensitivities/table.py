"""Rows of a layer table, from samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvm_q4.layer_table import LayerRow
from tvm_q4.sensitivities.metric import WEIGHTS_ONLY, Metric, standard_error
from tvm_q4.sensitivities.network import FloatNetwork
from tvm_q4.sensitivities.ranking import compare_rankings

_FIXED = "8"


def rows(network: FloatNetwork, metric: Metric, samples: Tensor) -> tuple[LayerRow, ...]:
    """Return a row for each layer: sensitivity, its standard error, and the metric's own keys."""
    parts = metric.parts(samples)
    values = {key: _mean(parts, names) for key, names in metric.sums.items()}
    errors = {
        key: standard_error(torch.stack([parts[name] for name in names]).sum(0))
        for key, names in metric.sums.items()
    }
    details = metric.details(samples)
    found = []
    for i, layer in enumerate(network.layers):
        keys = [key for key in values if key == _FIXED or not layer.fixed]
        sensitivity = {key: float(values[key][i]) for key in keys}
        error = {key: float(errors[key][i]) for key in keys}
        found.append(
            LayerRow(
                layer.name,
                layer.weight.numel(),
                layer.macs,
                sensitivity,
                fixed=8 if layer.fixed else None,
                extra={"standard_error": error, **details[i]},
            )
        )
    return tuple(found)


def effect_of_activations(
    network: FloatNetwork, metric: Metric, samples: Tensor
) -> dict[str, Any] | None:
    """Return where the order of layers at 4 bit changes because activations count, if they do.

    See `tvm_q4.sensitivities.ranking.compare_rankings`; layers that stay at 8 bit are left out.
    """
    if metric.sums is WEIGHTS_ONLY:
        return None
    parts = metric.parts(samples)
    free = [i for i, layer in enumerate(network.layers) if not layer.fixed]
    alone, together = (_mean(parts, sums["4"])[free] for sums in (WEIGHTS_ONLY, metric.sums))
    return compare_rankings([network.layers[i].name for i in free], alone, together)


def _mean(parts: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """Return the sum of parts, float64 [layers]; one that is estimated as negative counts as 0."""
    return torch.stack([parts[name].mean(0).clamp_min(0.0) for name in names]).sum(0)
