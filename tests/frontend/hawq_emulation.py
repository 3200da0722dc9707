"""HAWQ-V3's arithmetic in float64, written from sections 2.1 to 2.5 of its description.

Nothing here comes from the project: torch's convolutions on doubles, ``math.frexp``, decimals.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tests.frontend.hawq_checkpoint import Net

Ints = NDArray[np.float64]


def dyadic_pair(ratio: float) -> tuple[float, int]:
    """Section 2.1: multiplier and exponent of a ratio."""
    f, x = math.frexp(ratio)
    return float(Decimal(f * 2.0**31).quantize(Decimal(1), rounding=ROUND_HALF_UP)), 31 - x


def rounded(v: Ints, mode: str) -> Ints:
    """Round float64 values; the comparisons are exact."""
    below = np.floor(v)
    part = v - below
    if mode == "half_even":
        return np.rint(v)
    if mode == "half_up":
        return below + (part >= 0.5)
    if mode == "half_away":
        return below + np.where(v >= 0, part >= 0.5, part > 0.5)
    return below


class Emulation:
    """Runs one network on integers that float64 holds; `tensors` gets each one by module name.

    Parameters
    ----------
    net : Net
    state : mapping of str to Tensor
        A ``state_dict`` without prefix.
    bits : dict of str to int
        Bits of each layer and of its input.
    mode : str
        Rounding; ``half_even`` is PyTorch's side, the others TVM's.
    """

    def __init__(
        self, net: Net, state: OrderedDict[str, Tensor], bits: dict[str, int], mode: str
    ) -> None:
        self.net, self.state, self.bits, self.mode = net, state, bits, mode
        self.add_mode = "half_even" if mode == "half_even" else "half_up"
        self.tensors: dict[str, NDArray] = {}

    def scale(self, act: str) -> np.float32:
        return np.float32(self.state[f"{act}.act_scaling_factor"].item())

    def requantized(self, z: Ints, scales: NDArray[np.float32], out: np.float32, mode: str) -> Ints:
        """Integers of scale A, [C] or [1], at the scale `out`."""
        pairs = [dyadic_pair(float(a) / float(out)) for a in scales]
        m = np.array([p[0] for p in pairs]).reshape(1, -1, 1, 1)
        e = np.array([p[1] for p in pairs], np.float64).reshape(1, -1, 1, 1)
        return rounded(z * m / 2.0**e, mode)

    def conv(self, name: str, x: Ints, act: str, stride: int) -> tuple[Ints, NDArray[np.float32]]:
        """Accumulators of a convolution and their scales."""
        weight = self.state[f"{name}.weight_integer"].double()
        bias = self.state[f"{name}.bias_integer"].double()
        z = F.conv2d(torch.from_numpy(x), weight, bias, stride, weight.shape[2] // 2).numpy()
        w = self.state[f"{name}.convbn_scaling_factor"].double().numpy()
        return z, np.float32(np.float64(self.scale(act)) * np.broadcast_to(w, z.shape[1]))

    def activation(self, act: str, z: Ints, scales: NDArray[np.float32], bits: int) -> Ints:
        """ReLU and quantizer."""
        low, high = (0, 15) if bits == 4 else (-128, 127)
        q = self.requantized(np.maximum(z, 0), scales, self.scale(act), self.mode)
        self.tensors[act] = np.clip(q, low, high)
        return self.tensors[act]

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of images [N, 3, H, W]."""
        net = self.net
        reciprocal = np.float32(1) / self.scale("quant_input")
        q = np.clip(np.rint(reciprocal * x), -128, 127).astype(np.float64)
        self.tensors["quant_input"] = q
        z, scales = self.conv(net.first, q, "quant_input", 2)
        z = F.max_pool2d(torch.from_numpy(z), 3, 2, 1).numpy()
        stream_scale = self.scale("quant_act_int32")
        stream = self.requantized(z, scales, stream_scale, self.mode)
        if self.mode == "half_even":
            stream = np.clip(stream, -32768, 32767)
        stream = self.tensors["quant_act_int32"] = np.maximum(stream, 0)
        for prefix, stride in net.prefixes():
            stream, stream_scale = self.unit(prefix, stride, stream, stream_scale)
        return self.head(stream, stream_scale)

    def unit(
        self, prefix: str, stride: int, stream: Ints, stream_scale: np.float32
    ) -> tuple[Ints, np.float32]:
        """Residual unit: the next stream and its scale."""
        strides = [stride, 1]
        if self.net.bottleneck:
            strides = [1, stride, 1] if self.net.v1_5 else [stride, 1, 1]
        names = [f"{prefix}.quant_convbn{i + 1}" for i in range(len(strides))]
        acts = [f"{prefix}.quant_act{i or ''}" for i in range(len(strides))]
        out = self.scale(f"{prefix}.quant_act_int32")
        z, scales = stream, np.array([stream_scale])
        inputs = []
        for name, act, step in zip(names, acts, strides, strict=True):
            inputs.append(self.activation(act, z, scales, self.bits[name]))
            z, scales = self.conv(name, inputs[-1], act, step)
        main = self.requantized(z, scales, out, self.add_mode)
        identity = f"{prefix}.quant_identity_convbn"
        if f"{identity}.weight_integer" in self.state:
            z, scales = self.conv(identity, inputs[0], acts[0], stride)
        else:
            z, scales = stream, np.array([stream_scale])
        total = self.requantized(z, scales, out, self.add_mode) + main
        self.tensors[f"{prefix}.quant_act_int32"] = np.maximum(total, 0)
        return self.tensors[f"{prefix}.quant_act_int32"], out

    def head(self, stream: Ints, stream_scale: np.float32) -> NDArray[np.float32]:
        """Average pool, last quantizer, linear layer."""
        pooled = np.trunc(stream.mean(axis=(2, 3), keepdims=True) + 0.01)
        self.tensors["final_pool"] = pooled
        q = self.activation("quant_act_output", pooled, np.array([stream_scale]), 8)[:, :, 0, 0]
        z = q @ self.state["quant_output.weight_integer"].double().numpy().T
        z = z + self.state["quant_output.bias_integer"].double().numpy()
        w = self.state["quant_output.fc_scaling_factor"].numpy()
        logits: NDArray[np.float32] = z.astype(np.float32) * (self.scale("quant_act_output") * w)
        self.tensors["logits"] = logits
        return logits
