"""CIFAR ResNets of depth 6n+2 (He et al., "Deep Residual Learning", CVPR 2016, section 4.2).

A 3x3 stem with 16 channels, three stages of n basic blocks with 16, 32 and 64 channels, global
average pooling and one linear layer. Module names follow torchvision's ResNet (``conv1``, ``bn1``,
``layer1.0.conv1``, ``layer2.0.downsample.0``, ``fc``), so one bit config serves both families.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvm_q4.errors import InputError

Shortcut = Literal["A", "B"]
_STAGE_CHANNELS = (16, 32, 64)


class PaddedShortcut(nn.Module):
    """Parameter-free "option A" shortcut: every second pixel, new channels filled with zeros.

    The zero channels go half before and half after the existing ones, as in the widely used
    akamaster/pytorch_resnet_cifar10 weights.

    Parameters
    ----------
    in_channels, out_channels : int
        Channel counts of the input and of the output; ``out_channels >= in_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        extra = out_channels - in_channels
        self.before = extra // 2
        self.after = extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, C, H, W] to [N, C', ceil(H/2), ceil(W/2)]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def _shortcut(in_channels: int, out_channels: int, stride: int, kind: Shortcut) -> nn.Module | None:
    """Return the module on the skip path, or None where the block keeps its shape."""
    if stride == 1 and in_channels == out_channels:
        return None
    if kind == "A":
        return PaddedShortcut(in_channels, out_channels)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut around them.

    Parameters
    ----------
    in_channels, out_channels : int
        Channel counts of the block's input and output.
    stride : int
        Stride of the first convolution (1 or 2).
    shortcut : {"A", "B"}
        "A" pads with zero channels, "B" is a 1x1 convolution with batch normalisation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, C, H, W] to [N, C', H', W']."""
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + skip)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images.

    Parameters
    ----------
    depth : int
        6n+2: 20, 32, 44, 56, 110.
    shortcut : {"A", "B"}
        Kind of shortcut where a stage halves the image.
    num_classes : int
        Width of the last linear layer.

    Raises
    ------
    InputError
        If `depth` is not 6n+2 with n >= 1, or `shortcut` is neither "A" nor "B".
    """

    def __init__(self, depth: int = 20, shortcut: Shortcut = "B", num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            msg = f"CIFAR ResNet depth is {depth}; it must be 6n+2 (8, 14, 20, 32, 44, 56, ...)"
            raise InputError(msg)
        if shortcut not in ("A", "B"):
            msg = f"CIFAR ResNet shortcut is {shortcut!r}; use 'A' (padded) or 'B' (convolution)"
            raise InputError(msg)
        self.conv1 = nn.Conv2d(3, _STAGE_CHANNELS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STAGE_CHANNELS[0])
        self.relu = nn.ReLU()
        blocks = (depth - 2) // 6
        channels = _STAGE_CHANNELS[0]
        for stage, width in enumerate(_STAGE_CHANNELS, start=1):
            first = BasicBlock(channels, width, 1 if stage == 1 else 2, shortcut)
            rest = [BasicBlock(width, width, 1, shortcut) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation of the convolutions (He et al., ICCV 2015)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 images [N, 3, H, W] to logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet20(shortcut: Shortcut = "B", num_classes: int = 10) -> CifarResNet:
    """Return ResNet-20 for CIFAR-10 with random weights; parameters as in `CifarResNet`."""
    return CifarResNet(20, shortcut, num_classes)
