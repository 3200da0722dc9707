"""What post-training quantization does beyond scales: roundings and biases, unit by unit.

Each unit is given what the quantized network before it makes, so that it can make good for that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import GraphModule

from tvm_q4.progress import ProgressBar
from tvm_q4.quantize.adaround import AdaRoundOptions, learn_rounding
from tvm_q4.quantize.bias_correction import correct_biases, float_means, give_biases
from tvm_q4.quantize.constants import LAYER_KEY
from tvm_q4.quantize.switchable import floating, start_quantizing
from tvm_q4.quantize.units import Unit, units_of

_MOST_VALUES = 1 << 27
"""Of a tensor between units, over all images."""


def refine(
    prepared: GraphModule,
    images: Tensor,
    *,
    bias_correction: bool,
    rounding: AdaRoundOptions | None,
    seed: int,
    progress: bool | None,
) -> None:
    """Learn roundings and correct biases of a calibrated graph, in place.

    Parameters
    ----------
    prepared : GraphModule
        Calibrated, its quantizers `SwitchableQuantizer`.
    images : Tensor
        Calibration inputs [N, C, H, W]. A unit's inputs and outputs, in float and quantized, are
        held for all that are used: as many as keep each of these under half a gigabyte.
    bias_correction : bool
        Whether to correct the biases of every layer.
    rounding : AdaRoundOptions or None
        How to learn the rounding of 4-bit weights; None leaves it to the nearest.
    seed : int
        Seed of the batches that learning the rounding draws.
    progress : bool, optional
        See `tvm_q4.progress.ProgressBar`.
    """
    if bias_correction:
        give_biases(prepared)
    start_quantizing(prepared)
    generator = torch.Generator().manual_seed(seed)
    units = units_of(prepared)
    used = images[: _most_images(units)]
    quantized = exact = used.contiguous(memory_format=torch.channels_last)
    with ProgressBar("quantize", len(units), show=progress) as bar:
        for unit in units:
            bar.step(", ".join(str(layer.meta[LAYER_KEY]) for layer in unit.layers))
            with floating(unit.module):
                target = unit.run(exact)
            means = float_means(prepared, unit, exact) if bias_correction else []
            if rounding is not None:
                learn_rounding(prepared, unit, quantized, target, rounding, generator)
            if bias_correction:
                correct_biases(prepared, unit, quantized, means)
            quantized, exact = unit.run(quantized), target
            bar.advance()


def _most_images(units: list[Unit]) -> int:
    """Return how many images may be used, whole batches where the graph demands them."""
    largest = max(math.prod(unit.target.meta["val"].shape[1:]) for unit in units)
    batch = units[0].fixed_batch or 1
    return max(1, _MOST_VALUES // largest // batch) * batch
