"""Float networks that the tools quantize: small ones, and the real ones by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.frontend.onnx_models.quiet import quiet

SIZE = (3, 17, 14)
"""Channels, height and width of the small network's images: odd, and not square."""
CLASSES = 10


class Block(nn.Module):
    """A residual block whose shortcut is a strided 1x1 convolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Conv2d(channels, width, 1, 2)
        # torchao's x86 quantizer refuses a ReLU module that is used twice.
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [N, C, H, W] to [N, width, ceil(H / 2), ceil(W / 2)]."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.downsample(x))


class SmallResNet(nn.Module):
    """Stem, max-pool, one residual block with groups, average pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = Block(8, 16)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, 10]."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def small_resnet(seed: int = 0) -> SmallResNet:
    """The small network in evaluation mode, with statistics that are not the initial ones."""
    torch.manual_seed(seed)
    return with_statistics(SmallResNet())


def with_statistics(network: nn.Module) -> nn.Module:
    """`network` in evaluation mode; each batch normalisation got random statistics and weights."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def images(count: int, size: tuple[int, ...] = SIZE, seed: int = 1) -> NDArray[np.float32]:
    """Random images [count, C, H, W]."""
    return np.random.default_rng(seed).normal(size=(count, *size)).astype(np.float32)


def export_float(network: nn.Module, path: Path, size: tuple[int, ...] = SIZE) -> Path:
    """Write `network` as a float ``.onnx`` with a free batch, by torch's older exporter."""
    with quiet():
        torch.onnx.export(
            network.eval(),
            (torch.from_numpy(images(1, size)),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    return path
