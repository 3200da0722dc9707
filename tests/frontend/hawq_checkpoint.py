"""HAWQ-V3 checkpoints with random weights, made with torch as its trainer computes them.

Written from sections 1.1 to 1.7 of the format's description and independent of the frontend: keys
and shapes of a network, float tensors for them, scales and integers derived from these.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GROUPS = (
    "convbn_scaling_factor", "fc_scaling_factor", "weight_integer", "bias_integer",
    "act_scaling_factor",
)  # fmt: skip


@dataclass(frozen=True)
class Net:
    """A network: units of each stage, kind of unit, channels of each stage, classes."""

    units: tuple[int, ...]
    bottleneck: bool = False
    v1_5: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64
    classes: int = 1000

    @property
    def first(self) -> str:
        return "quant_init_convbn" if self.bottleneck else "quant_init_block_convbn"

    def prefixes(self) -> list[tuple[str, int]]:
        """Prefix and stride of each unit."""
        return [
            (f"stage{s}.unit{u}", 2 if s > 1 and u == 1 else 1)
            for s, n in enumerate(self.units, 1)
            for u in range(1, n + 1)
        ]


ONE_UNIT = Net((1,), bottleneck=True, widths=(3,), stem=5, classes=4)
TINY = Net((1, 2), widths=(5, 12), stem=5, classes=7)
TINY_BOTTLENECK = Net((1, 1), bottleneck=True, widths=(4, 6), stem=8, classes=5)
TINY_BOTTLENECK_V1_5 = replace(TINY_BOTTLENECK, v1_5=True)
RESNET18 = Net((2, 2, 2, 2))
RESNET34 = Net((3, 4, 6, 3))
RESNET50 = Net((3, 4, 6, 3), bottleneck=True)
RESNET50B = replace(RESNET50, v1_5=True)
RESNET101 = Net((3, 4, 23, 3), bottleneck=True)

Shapes = OrderedDict[str, tuple[int, ...]]


def convolutions(net: Net) -> OrderedDict[str, tuple[str, tuple[int, ...]]]:
    """Quantizer that feeds each convolution, and its weight's shape, in order of registration."""
    found = OrderedDict({net.first: ("quant_input", (net.stem, 3, 7, 7))})
    channels, stage = net.stem, 0
    for prefix, stride in net.prefixes():
        stage = int(prefix[5])
        width = net.widths[stage - 1]
        plan = [(width, 1), (width, 3), (4 * width, 1)] if net.bottleneck else [(width, 3)] * 2
        read = channels
        for i, (out, k) in enumerate(plan):
            act = f"{prefix}.quant_act{i or ''}"
            found[f"{prefix}.quant_convbn{i + 1}"] = act, (out, read, k, k)
            read = out
        if stride == 2 or channels != read:
            found[f"{prefix}.quant_identity_convbn"] = f"{prefix}.quant_act", (read, channels, 1, 1)
        channels = read
    return found


def quantizers(net: Net) -> list[str]:
    """Activation quantizers."""
    inner = ["quant_act", "quant_act1", "quant_act2"][: 3 if net.bottleneck else 2]
    units = [f"{p}.{act}" for p, _ in net.prefixes() for act in (*inner, "quant_act_int32")]
    return ["quant_input", "quant_act_int32", *units, "quant_act_output"]


def shapes(net: Net) -> Shapes:
    """Shape of every tensor of the ``state_dict``."""
    found: Shapes = OrderedDict()
    for act in quantizers(net):
        for key in ("x_min", "x_max", "act_scaling_factor", "pre_weight_scaling_factor",
                    "identity_weight_scaling_factor"):  # fmt: skip
            found[f"{act}.{key}"] = (1,)
    for conv, (_, shape) in convolutions(net).items():
        for key in ("convbn_scaling_factor", "bias_integer", "bn.weight", "bn.bias",
                    "bn.running_mean", "bn.running_var"):  # fmt: skip
            found[f"{conv}.{key}"] = shape[:1]
        found[f"{conv}.weight_integer"] = found[f"{conv}.conv.weight"] = shape
        found[f"{conv}.bn.num_batches_tracked"] = ()
    features = net.widths[-1] * (4 if net.bottleneck else 1)
    for key in ("weight", "weight_integer"):
        found[f"quant_output.{key}"] = (net.classes, features)
    for key in ("bias", "bias_integer", "fc_scaling_factor"):
        found[f"quant_output.{key}"] = (net.classes,)
    return found


def layer_bits(net: Net, four: set[str] | None) -> dict[str, int]:
    """Bits of every layer: those of `four` are 4, None makes all inner layers so."""
    inner = [name for name in convolutions(net) if name != net.first]
    return dict.fromkeys([net.first, "quant_output"], 8) | {
        name: 4 if four is None or name in four else 8 for name in inner
    }


def float_state(net: Net, seed: int) -> OrderedDict[str, Tensor]:
    """Random float tensors: weights and batch norms as of a trained network, ranges of each act."""
    g = torch.Generator().manual_seed(seed)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, shape in shapes(net).items():
        uniform, normal = torch.rand(shape, generator=g), torch.randn(shape, generator=g)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1000)
        elif key.endswith(("conv.weight", "quant_output.weight")):
            state[key] = normal * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        elif key.endswith(("bn.weight", "running_var")):
            state[key] = uniform + 0.5
        elif key.endswith(("bn.bias", "running_mean", "quant_output.bias")):
            state[key] = normal * 0.2
        elif key.endswith("x_max"):
            state[key] = uniform + (4.0 if "int32" in key else 2.4)
        elif key.endswith("x_min"):
            signed = key.startswith("quant_input") or "quant_act_int32" in key
            state[key] = -uniform - 1.8 if signed else torch.zeros(shape)
        elif key.endswith(("pre_weight_scaling_factor", "identity_weight_scaling_factor")):
            state[key] = torch.ones(shape)
    return state


def symmetric(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """HAWQ's symmetric quantizer, in float32."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    shape = (-1, *[1] * (values.dim() - 1))
    return torch.clamp(torch.round((1.0 / scale).view(shape) * values), low, high)


def derive(net: Net, state: OrderedDict[str, Tensor], bits: dict[str, int]) -> None:
    """Fill in scales and integers (sections 1.4 and 1.5)."""
    reads = {name: act for name, (act, _) in convolutions(net).items()}
    reads["quant_output"] = "quant_act_output"
    for act in quantizers(net):
        low, high = state[f"{act}.x_min"], state[f"{act}.x_max"]
        count = 16 if act.endswith("quant_act_int32") else 8
        count = next((bits[name] for name, read in reads.items() if read == act), count)
        if count == 4:
            scale = torch.clamp(high - low, min=1e-8) / 15
        else:
            largest = torch.max(low.abs(), high.abs())
            scale = torch.clamp(largest, min=1e-8) / (2 ** (count - 1) - 1)
        state[f"{act}.act_scaling_factor"] = scale
    for name, act in reads.items():
        if name == "quant_output":
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            key = f"{name}.fc_scaling_factor"
        else:
            w, gamma, beta, mean, var = (
                state[f"{name}.{k}"]
                for k in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean",
                          "bn.running_var")
            )  # fmt: skip
            # torch's own square root, from MKL, is not always rounded correctly.
            factor = gamma / torch.from_numpy(np.sqrt((var + 1e-5).numpy()))
            weight, bias = w * factor.view(-1, 1, 1, 1), (0 - mean) * factor + beta
            key = f"{name}.convbn_scaling_factor"
        rows = weight.flatten(1)
        largest = torch.max(rows.min(dim=1).values.abs(), rows.max(dim=1).values.abs())
        scale = torch.clamp(largest, min=1e-8) / (2 ** (bits[name] - 1) - 1)
        state[key] = scale
        state[f"{name}.weight_integer"] = symmetric(weight, scale, bits[name])
        product = state[f"{act}.act_scaling_factor"] * scale
        state[f"{name}.bias_integer"] = symmetric(bias, product, 32)


def make_state(
    net: Net, four: set[str] | None = None, seed: int = 0, dead: dict[str, list[int]] | None = None
) -> OrderedDict[str, Tensor]:
    """A complete ``state_dict`` without prefix; `dead` lists channels with weights 0 by layer."""
    state = float_state(net, seed)
    for name, channels in (dead or {}).items():
        state[f"{name}.conv.weight"][channels] = 0.0
    derive(net, state, layer_bits(net, four))
    return state


def save_quantized(state: OrderedDict[str, Tensor], path: Path, prefix: str = "module.") -> Path:
    """Write ``quantized_checkpoint.pth.tar``: five dicts, by the word in the key."""
    groups = {g: {prefix + k: t for k, t in state.items() if g in k} for g in GROUPS}
    torch.save(groups, path)
    return path


def save_whole(
    state: OrderedDict[str, Tensor], path: Path, arch: str, prefix: str = "module."
) -> Path:
    """Write ``checkpoint.pth.tar``."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], 0.1, momentum=0.9)
    content = {
        "epoch": 3,
        "arch": arch,
        "state_dict": OrderedDict((prefix + k, t) for k, t in state.items()),
        "best_acc1": torch.tensor(71.5),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path)
    return path
