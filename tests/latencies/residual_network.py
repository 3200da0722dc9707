"""A residual network of torch, small, with all that bits change at boundaries."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.frontend.graphs import export
from tvm_q4.quantize import save_program

FREE = ("block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut")
TIED = ["block2.conv1", "block2.shortcut"]


class Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Of [N, `before`, H, W]."""
        out = self.conv2(torch.relu(self.conv1(x)))
        return torch.relu(out + self.shortcut(x))


class Network(nn.Module):
    """Stem, max-pool, two blocks, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.block1, self.block2 = Block(16, 16), Block(16, 32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Of [N, 3, H, W]."""
        x = self.block2(self.block1(self.pool(torch.relu(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


def save(path: Path) -> Path:
    """Write the float network for two images of 10x12."""
    torch.manual_seed(0)
    save_program(export(Network().eval(), 2, 3, 10, 12), path, {})
    return path
