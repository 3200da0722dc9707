"""Small networks and their prepared graphs, for tests of what is done to these."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from tvm_q4.quantize import load_bit_config
from tvm_q4.quantize.observers import MseObserver, MseWeightObserver
from tvm_q4.quantize.ptq import calibrate, capture
from tvm_q4.quantize.quantizer import Q4Quantizer
from tvm_q4.quantize.switchable import SwitchableQuantizer, start_quantizing


class Residual(nn.Module):
    """Stem, one block with batch normalisation, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """From [N, 3, H, W] to [N, 4]."""
        x = self.stem(x).relu()
        x = (self.b(self.bn(self.a(x)).relu()) + x).relu()
        return self.fc(x.mean([2, 3]))


class Chain(nn.Module):
    """Convolutions one after the other; the batch size is taken from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(c, 6, 3) for c in (3, 6, 6))
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """From [N, 3, 8, 8] to [N, 4]."""
        batch = x.size(0)
        x = self.three(self.two(self.one(x).relu()).relu()).relu()
        return self.fc(x.view(batch, -1))


def images(count: int = 12, seed: int = 0) -> Tensor:
    """Return random inputs [N, 3, 8, 8]."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def network(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """Return a network in evaluation mode whose batch normalisation does something."""
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def observing(model: nn.Module, x: Tensor, config: str = "uniform4") -> GraphModule:
    """Return the prepared graph of `model`, before calibration."""
    quantizer = Q4Quantizer(
        load_bit_config(config),
        SwitchableQuantizer.with_args(observer=MseWeightObserver),
        SwitchableQuantizer.with_args(observer=MseObserver),
    )
    return prepare_pt2e(capture(model, (x,)), quantizer)


def quantizing(model: nn.Module, x: Tensor, config: str = "uniform4") -> GraphModule:
    """Return the prepared graph of `model`, calibrated on `x` and quantizing."""
    prepared = observing(model, x, config)
    calibrate(prepared, [x])
    start_quantizing(prepared)
    return prepared
