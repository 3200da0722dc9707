"""Learned rounding of 4-bit weights: each goes up or down, whichever serves the unit's output.

Method: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020
(section 3.3: rectified sigmoid, annealed penalty, target from the float network and input from the
quantized one). As in Li et al., "BRECQ", ICLR 2021, it is a block's output that is reconstructed
where the network has blocks, and with activations quantized and their step sizes learned by the
gradient of Esser et al., "Learned Step Size Quantization", ICLR 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tvm_q4.errors import InputError
from tvm_q4.quantize.constants import read_constant
from tvm_q4.quantize.switchable import SwitchableQuantizer, quantizer_of, quantizers_in
from tvm_q4.quantize.units import Unit

_LOW, _HIGH = -0.1, 1.1
"""Range to which the sigmoid is stretched before it is cut to 0..1 (gamma and zeta there)."""
_FOUR_BIT = 7
"""Largest integer of a 4-bit weight."""


@dataclass(frozen=True)
class AdaRoundOptions:
    """How the rounding is learned.

    Parameters
    ----------
    iterations : int
        Steps of Adam a unit. Its rates fall to 0 by a half cosine.
    batch_size : int
        Calibration images a step, drawn with replacement.
    rounding_rate : float
        Learning rate of the variables behind the roundings.
    step_rate : float
        Learning rate of activation step sizes, relative to each; 0 leaves them as observed.
    penalty : float
        Weight of the mean penalty of undecided roundings, against the squared error relative to
        that of rounding to nearest.
    warm_up : float
        Share of the iterations without penalty.
    sharpness : (float, float)
        Exponent of the penalty when it begins and at the end (beta there).

    Raises
    ------
    InputError
        If a value is out of range.
    """

    iterations: int = 500
    batch_size: int = 16
    rounding_rate: float = 3e-2
    step_rate: float = 1e-3
    penalty: float = 1.0
    warm_up: float = 0.2
    sharpness: tuple[float, float] = (20.0, 2.0)

    def __post_init__(self) -> None:
        checks = {
            "iterations": (self.iterations, self.iterations >= 1, "at least 1"),
            "batch_size": (self.batch_size, self.batch_size >= 1, "at least 1"),
            "rounding_rate": (self.rounding_rate, self.rounding_rate > 0, "above 0"),
            "step_rate": (self.step_rate, self.step_rate >= 0, "0 or more"),
            "penalty": (self.penalty, self.penalty >= 0, "0 or more"),
            "warm_up": (self.warm_up, 0 <= self.warm_up < 1, "from 0 to below 1"),
            "sharpness": (self.sharpness, min(self.sharpness) >= 1, "at least 1, twice"),
        }
        for name, (value, valid, wanted) in checks.items():
            if not valid:
                raise InputError(f"AdaRound {name} is {value}; it must be {wanted}")


class SoftRounding(nn.Module):
    """A weight between its two nearest integers, where `up` says: float32, the weight's shape.

    Parameters
    ----------
    weight : Tensor
        Float weight [C, ...]; `up` starts where the soft weight equals it, if it is in range.
    scale : Tensor
        [C].
    low, high : int
        Range of the integers, both included.
    """

    def __init__(self, weight: Tensor, scale: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
        self.low, self.high = low, high
        ratio = weight.detach() / self.scale
        self.floor = ratio.floor()
        stretched = (ratio - self.floor - _LOW) / (_HIGH - _LOW)
        self.up = nn.Parameter(torch.logit(stretched))

    def shares(self) -> Tensor:
        """Return how far up each weight is, 0..1."""
        return (torch.sigmoid(self.up) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)

    def forward(self, _weight: Tensor) -> Tensor:
        """Return the soft weight."""
        return (self.floor + self.shares()).clamp(self.low, self.high) * self.scale

    def decided(self) -> Tensor:
        """Return the weight with every rounding decided: an integer times the scale."""
        return (self.floor + (self.shares() >= 0.5)).clamp(self.low, self.high) * self.scale

    def penalty(self, sharpness: float) -> Tensor:
        """Return the sum of ``1 - |2 * share - 1| ** sharpness``."""
        return (1.0 - (2.0 * self.shares() - 1.0).abs().pow(sharpness)).sum()


def learn_rounding(
    prepared: GraphModule,
    unit: Unit,
    x: Tensor,
    y: Tensor,
    options: AdaRoundOptions,
    generator: torch.Generator,
) -> None:
    """Round the unit's 4-bit weights so that its output comes near the float network's.

    Afterwards these weights are integers times their scale, so that rounding to nearest, here and
    in the conversion, finds these integers. A unit without 4-bit weights is left as it is, and so
    is a weight that is read more than once. Where that is not better than rounding to nearest over
    all of `x`, weights and steps are put back.

    Parameters
    ----------
    prepared : GraphModule
        Quantizing.
    unit : Unit
        Of `prepared`.
    x : Tensor
        The unit's input in the quantized network [N, ...].
    y : Tensor
        The unit's output in the float network [N, ...].
    options : AdaRoundOptions
    generator : torch.Generator
        Draws the batches.
    """
    weights = _four_bit_weights(prepared, unit)
    if not weights:
        return
    nearest = _error(unit, x, y)
    if nearest == 0.0:
        return
    steps = _own_steps(prepared, unit) if options.step_rate else []
    before = [(value, value.detach().clone()) for value in [*weights.values(), *steps]]
    roundings = []
    for quantizer, weight in weights.items():
        scale = quantizer.calculate_qparams()[0]
        quantizer.rounding = SoftRounding(weight, scale, quantizer.quant_min, quantizer.quant_max)
        roundings.append(quantizer.rounding)
    for parameter in prepared.parameters():
        parameter.requires_grad_(False)
    _descend(unit, x, y, roundings, steps, nearest, options, generator)
    with torch.no_grad():
        for (quantizer, weight), rounding in zip(weights.items(), roundings, strict=True):
            quantizer.rounding = None
            weight.copy_(rounding.decided())
        if not _error(unit, x, y) < nearest:
            for value, old in before:
                value.copy_(old)


def _descend(
    unit: Unit,
    x: Tensor,
    y: Tensor,
    roundings: list[SoftRounding],
    steps: list[nn.Parameter],
    nearest: float,
    options: AdaRoundOptions,
    generator: torch.Generator,
) -> None:
    """Minimise the error over roundings and steps; `nearest` is the error that counts as 1."""
    learned = [r.up for r in roundings]
    groups = [{"params": learned, "lr": options.rounding_rate}]
    groups += [{"params": [s], "lr": options.step_rate * s.item()} for s in steps]
    for parameter in [*learned, *steps]:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.iterations)
    count = sum(r.up.numel() for r in roundings)
    size = unit.fixed_batch or options.batch_size
    for i in range(options.iterations):
        index = torch.randint(len(x), (size,), generator=generator)
        loss = (unit.module(x[index]) - y[index]).square().mean() / nearest
        sharpness = _sharpness(i / options.iterations, options)
        if sharpness is not None:
            undecided = torch.stack([r.penalty(sharpness) for r in roundings]).sum()
            loss = loss + options.penalty * undecided / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for step in steps:
        step.requires_grad_(False)


def _sharpness(progress: float, options: AdaRoundOptions) -> float | None:
    """Return the penalty's exponent after that share of the iterations, None in the warm-up."""
    if progress < options.warm_up:
        return None
    start, end = options.sharpness
    rest = (1.0 - progress) / (1.0 - options.warm_up)
    return end + (start - end) * 0.5 * (1.0 - math.cos(math.pi * rest))


def _four_bit_weights(prepared: GraphModule, unit: Unit) -> dict[SwitchableQuantizer, nn.Parameter]:
    """Return the unit's 4-bit weights that nothing else reads, by quantizer."""
    found = {}
    for layer in unit.layers:
        node = layer.args[1]
        quantizer, weight = quantizer_of(prepared, node), node.args[0]
        if quantizer.quant_max == _FOUR_BIT and len(node.users) == len(weight.users) == 1:
            found[quantizer] = read_constant(prepared, str(weight.target))
    return found


def _own_steps(prepared: GraphModule, unit: Unit) -> list[nn.Parameter]:
    """Return the steps of activation quantizers that stand in no other unit."""
    inside = {n.target for n in unit.module.graph.nodes if n.op == "call_module"}
    calls = [n for n in prepared.graph.nodes if n.op == "call_module"]
    outside = {quantizer_of(prepared, n) for n in calls if n.target not in inside}
    return [
        q.scale
        for q in quantizers_in(unit.module)
        if q.qscheme == torch.per_tensor_symmetric and q not in outside
    ]


def _error(unit: Unit, x: Tensor, y: Tensor) -> float:
    return float((unit.run(x) - y).square().mean())
