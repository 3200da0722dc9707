"""A tiny classifier and tiny random data for tests of training."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tvm_q4.data import Dataset

SHAPE = (3, 6, 6)
CLASSES = 4


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """Two convolutions with batch normalisation, and a linear layer with four classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, CLASSES),
    )  # fmt: skip


def data(count: int = 40, labels: bool = True, seed: int = 0) -> Dataset:
    """Images whose label is the quarter of the value range that their mean lies in."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = rng.normal(0, 0.3, (count, *SHAPE)) + (y[:, None, None, None] - 1.5)
    x = x.astype(np.float32)
    return Dataset(count, lambda start, stop: x[start:stop], y if labels else None)
