"""A network that others trained with 4-bit weights and activations, as a PT2E-style program.

Source: yhhhli/APoT_Quantization, ``resnet10_4bit_uniform`` for MNIST (Li, Dong, Wang, ICLR 2020);
formulas in the data folder's README. Weights become ``round(clamp(w' / weight_alpha, -1, 1) * 7)``
with w' the standardised weights, at scale weight_alpha / 7; activations have scale act_alpha / 15
and range 0..15. Stem and classifier have 8-bit weights and float activations, so they are float
here with rounded weights; the residual stream is float too. Batch normalisation is left unfolded.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn
from torch.export import ExportedProgram

Q = torch.ops.quantized_decomposed
_WIDTHS = (16, 32, 64, 128)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file: 8 bytes of header length, a JSON header, raw data."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    dtypes = {"F32": np.float32, "I64": np.int64}
    out = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + o for o in entry["data_offsets"])
            array = np.frombuffer(data[start:end], dtypes[entry["dtype"]]).reshape(entry["shape"])
            out[name] = torch.from_numpy(array.copy())
    return out


def _round_to_8_bit(weight: Tensor) -> Tensor:
    """Stem and classifier: rounded in steps of the signed maximum over 127."""
    top = weight.max()
    return torch.round(weight / top * 127) / 127 * top


class QuantConv2d(nn.Module):
    """4-bit convolution of a 4-bit activation, with explicit quantize and dequantize nodes."""

    def __init__(self, state: dict[str, Tensor], name: str, stride: int, padding: int) -> None:
        super().__init__()
        weight, alpha = state[f"{name}.weight"], state[f"{name}.weight_alpha"]
        standard = (weight - weight.mean()) / weight.std()
        levels = torch.round((standard / alpha).clamp(-1, 1) * 7)
        self.register_buffer("weight", levels.to(torch.int8))
        self.weight_scale = float(alpha) / 7
        self.act_scale = float(state[f"{name}.act_alpha"]) / 15
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x [N, C, H, W] to 0..15 and convolve."""
        x = Q.quantize_per_tensor(x, self.act_scale, 0, 0, 15, torch.uint8)
        x = Q.dequantize_per_tensor(x, self.act_scale, 0, 0, 15, torch.uint8)
        weight = Q.dequantize_per_tensor(self.weight, self.weight_scale, 0, -7, 7, torch.int8)
        return torch.conv2d(x, weight, None, self.stride, self.padding)


class Block(nn.Module):
    """Basic block; from the second on with stride 2 and a 1x1 convolution as shortcut."""

    def __init__(self, state: dict[str, Tensor], name: str, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(state, f"{name}.conv1", stride, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = QuantConv2d(state, f"{name}.conv2", 1, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride == 2:
            shortcut = QuantConv2d(state, f"{name}.downsample.0", 2, 0)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, width, H / stride, W / stride]."""
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + skip)


class ResNet10(nn.Module):
    """7x7 stem, max-pool, four blocks, global average pool, classifier of ten digits."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for i, width in enumerate(_WIDTHS, start=1):
            block = Block(state, f"layer{i}.0", width, 1 if i == 1 else 2)
            setattr(self, f"layer{i}", nn.Sequential(block))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, 10)
        self._load(state)

    def _load(self, state: dict[str, Tensor]) -> None:
        """Take over batch norms and bias, and the rounded weights of stem and classifier."""
        own = dict(state)
        for name in ("conv1.weight", "fc.weight"):
            own[name] = _round_to_8_bit(own[name])
        kept = {k: v for k, v in own.items() if ".conv" not in k and "downsample.0." not in k}
        missing, unexpected = self.load_state_dict(kept, strict=False)
        left = [k for k in missing if ".conv" not in k and "downsample.0." not in k]
        assert not left and not unexpected, (left, unexpected)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images [N, 1, 28, 28] to logits [N, 10]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def build_exported(data_dir: Path) -> ExportedProgram:
    """Exported program of the 4-bit network, dynamic batch.

    Parameters
    ----------
    data_dir : Path
        The data folder (holds ``qat-resnet10-mnist/resnet10_4bit_uniform.safetensors``).
    """
    state = read_safetensors(
        Path(data_dir) / "qat-resnet10-mnist" / "resnet10_4bit_uniform.safetensors"
    )
    example = (torch.zeros(2, 1, 28, 28),)
    network = ResNet10(state).eval()
    return torch.export.export(network, example, dynamic_shapes=({0: torch.export.Dim.AUTO},))


def images(data_dir: Path, count: int = 5000) -> tuple[Tensor, np.ndarray]:
    """First `count` images of ``mnist/test_a.npz``, normalised [N, 1, 28, 28], and their labels."""
    with np.load(Path(data_dir) / "mnist" / "test_a.npz") as data:
        x, y = data["x"][:count], data["y"][:count]
    return ((torch.from_numpy(x).float() / 255 - 0.131) / 0.308).unsqueeze(1), y


def recorded_logits(data_dir: Path) -> np.ndarray:
    """Plain torch's logits of the original network on ``test_a``, float32 [5000, 10]."""
    return np.load(
        Path(data_dir) / "qat-resnet10-mnist" / "resnet10_4bit_uniform_logits_test_a.npy"
    )
