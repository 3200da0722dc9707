"""Small torch networks for the command line's tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.frontend.graphs import Lambda, Q, fake_quantized


def quantized_weight(weight: Tensor, bits: int) -> Tensor:
    """Per-channel fake quantization of a weight, as PT2E writes it."""
    top = 2 ** (bits - 1) - 1
    scales = weight.flatten(1).abs().amax(1) / top
    zeros = torch.zeros_like(scales, dtype=torch.int64)
    q = Q.quantize_per_channel(weight, scales, zeros, 0, -top, top, torch.int8)
    return Q.dequantize_per_channel(q, scales, zeros, 0, -top, top, torch.int8)


def quantized_network() -> nn.Module:
    """A 4-bit convolution, ReLU, average pool and an 8-bit linear layer."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = fake_quantized(x, 0.03, -128, 127)
        x = nn.functional.conv2d(
            x, quantized_weight(self.conv.weight, 4), self.conv.bias, padding=1
        )
        x = fake_quantized(nn.functional.relu(x), 0.1, 0, 15)
        x = fake_quantized(x.mean((2, 3)), 0.02, 0, 255)
        return nn.functional.linear(x, quantized_weight(self.fc.weight, 8), self.fc.bias)

    return Lambda(forward, conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 5))
