"""Small torch networks for the command line's tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.frontend.graphs import Q, fake_quantized


class Weight(nn.Module):
    """An integer weight with one scale a channel, dequantized as PT2E writes it."""

    def __init__(self, bits: int, *shape: int) -> None:
        super().__init__()
        self.top = 2 ** (bits - 1) - 1
        self.register_buffer("q", torch.randint(-self.top, self.top + 1, shape, dtype=torch.int8))
        self.register_buffer("scale", torch.rand(shape[0]) * 0.05 + 0.01)
        self.register_buffer("zero", torch.zeros(shape[0], dtype=torch.int64))

    def forward(self) -> Tensor:
        """The dequantized weight."""
        top = self.top
        return Q.dequantize_per_channel(self.q, self.scale, self.zero, 0, -top, top, torch.int8)


class Network(nn.Module):
    """A 4-bit convolution, ReLU, average pool and an 8-bit linear layer with 5 classes.

    With `float_head`, the linear layer's input is not quantized, so that it stays float.
    """

    def __init__(self, float_head: bool = False) -> None:
        super().__init__()
        self.float_head = float_head
        self.conv, self.fc = Weight(4, 8, 3, 3, 3), Weight(8, 5, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 5] of images [N, 3, H, W]."""
        x = fake_quantized(x, 0.03, -128, 127)
        x = nn.functional.conv2d(x, self.conv(), padding=1)
        x = fake_quantized(nn.functional.relu(x), 0.1, 0, 15)
        x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        x = x if self.float_head else fake_quantized(x, 0.02, 0, 255)
        return nn.functional.linear(x, self.fc())
