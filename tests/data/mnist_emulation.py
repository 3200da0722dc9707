"""The third-party MNIST network in float64, biases rounded as a library rounds them.

It shares no code with tvm-q4 or with the exported program: formulas are the data folder's README's,
and one rule is `numerics.md`'s: the bias of an integer layer is ``round_half_even(b / unit)`` units
of its accumulator, ``unit = s_a * s_w * gamma / sqrt(var + eps)``. Accumulators are exact in
float64, so this network is what the rounded biases mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

BLOCKS = 4
EPS = 1e-5


class Emulation:
    """The network; `tensors` and `steps` hold what the last run computed.

    Parameters
    ----------
    state : mapping of str to Tensor
        Tensors of ``resnet10_4bit_uniform.safetensors``.
    round_bias : bool
        Round biases to accumulator units; else they stay real numbers, as in the original network.

    Attributes
    ----------
    tensors : dict of str to int64 ndarray
        Quantized activations, by the names that they have in a library.
    steps : dict of str to float64 ndarray
        The same before rounding and clamping, in steps.
    """

    def __init__(self, state: Mapping[str, Tensor], *, round_bias: bool) -> None:
        self._state = {k: v.double() for k, v in state.items()}
        self._round_bias = round_bias
        self.tensors: dict[str, NDArray[np.int64]] = {}
        self.steps: dict[str, NDArray[np.float64]] = {}
        self._given: Mapping[str, NDArray] = {}

    def run(self, x: Tensor, given: Mapping[str, NDArray] | None = None) -> NDArray[np.float64]:
        """Logits [N, 10] of normalised images [N, 1, 28, 28].

        `given` quantized tensors are read downstream in place of this network's own.
        """
        self._given = given or {}
        value = F.relu(
            self._batch_norm("bn1", F.conv2d(x.double(), self._rounded("conv1"), None, 2, 3))
        )
        value = F.max_pool2d(value, 3, 2, 1)
        names = ["maxpool.out"]
        for i in range(1, BLOCKS + 1):
            value = self._block(f"layer{i}.0", value, names, 1 if i == 1 else 2)
            names = [f"layer{i}.0.add", f"layer{i}.0.add.q2"]
        return F.linear(value.mean((2, 3)), self._rounded("fc"), self._state["fc.bias"]).numpy()

    def _block(self, block: str, value: Tensor, names: list[str], stride: int) -> Tensor:
        """Basic block; `names` of its quantized input: for the shortcut, if any, then for conv1."""
        skip = value
        if stride == 2:
            skip = self._layer(
                f"{block}.downsample.0", f"{block}.downsample.1", value, names[0], stride, 0
            )
        y = F.relu(self._layer(f"{block}.conv1", f"{block}.bn1", value, names[-1], stride, 1))
        y = self._layer(f"{block}.conv2", f"{block}.bn2", y, f"{block}.conv1.out", 1, 1)
        return F.relu(y + skip)

    def _layer(self, conv: str, norm: str, x: Tensor, name: str, stride: int, pad: int) -> Tensor:
        """Quantize `x` to the tensor `name`, convolve, add the bias."""
        alpha = self._state[f"{conv}.act_alpha"].item()
        levels = self._quantize(x, alpha / 15, name)
        weight, top = self._state[f"{conv}.weight"], self._state[f"{conv}.weight_alpha"]
        # The author's network standardises in float32; its roundings decide a few levels.
        single = weight.float()
        standard = (single - single.mean()) / single.std()
        integers = torch.round((standard / top.float()).clamp(-1, 1) * 7).double()
        gain, bias = self._folded(norm)
        unit = (alpha / 15) * (top.item() / 7) * gain
        if self._round_bias:
            bias = torch.round(bias / unit) * unit
        return F.conv2d(levels, integers, None, stride, pad) * _column(unit) + _column(bias)

    def _quantize(self, x: Tensor, scale: float, name: str) -> Tensor:
        steps = x / scale
        self.steps[name] = steps.numpy()
        self.tensors[name] = steps.round().clamp(0, 15).numpy().astype(np.int64)
        return torch.from_numpy(np.asarray(self._given.get(name, self.tensors[name]))).double()

    def _folded(self, norm: str) -> tuple[Tensor, Tensor]:
        """Factor and additive term of a batch norm, by channel."""
        names = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, var = (self._state[f"{norm}.{name}"] for name in names)
        gain = weight / torch.sqrt(var + EPS)
        return gain, bias - mean * gain

    def _batch_norm(self, norm: str, x: Tensor) -> Tensor:
        gain, bias = self._folded(norm)
        return x * _column(gain) + _column(bias)

    def _rounded(self, layer: str) -> Tensor:
        """Stem and classifier: weights in steps of the signed maximum over 127."""
        weight = self._state[f"{layer}.weight"]
        return torch.round(weight / weight.max() * 127) / 127 * weight.max()


def _column(v: Tensor) -> Tensor:
    return v.reshape(1, -1, 1, 1)
