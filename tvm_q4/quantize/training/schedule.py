"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tvm_q4.quantize.training.options import TrainingOptions


def make_optimizer(model: nn.Module, options: TrainingOptions) -> SGD:
    """Return SGD that decays weights (2 or more axes) and nothing else."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return SGD(
        [
            {"params": weights, "weight_decay": options.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=options.momentum > 0,
    )


def make_schedule(optimizer: Optimizer, options: TrainingOptions, steps: int) -> LambdaLR:
    """Return the learning-rate schedule over `steps` steps in all."""
    rising = round(options.warmup * steps) if options.schedule == "one-cycle" else 0
    return LambdaLR(optimizer, lambda step: rate_factor(step, steps, rising))


def rate_factor(step: int, steps: int, rising: int) -> float:
    """Return the share of the highest learning rate at `step`, from 0.

    It grows in a line over the first `rising` steps, then falls to 0 by half a cosine.
    """
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(steps - rising, 1))
