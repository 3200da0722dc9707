"""Integer weights and biases from a checkpoint's float weights and batch norms, in float32.

HAWQ drops the stored integers when it resumes and computes them anew; the float tensors are what a
checkpoint means. Stored integers are used where they follow from them, which a training that went
on without a validation breaks. The operations and their order are HAWQ's, with its default options,
each rounded correctly to float32 (torch's square root on CPUs is not always).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.frontend.hawq.architecture import OUTPUT, Architecture
from tvm_q4.frontend.hawq.bits import Bits
from tvm_q4.frontend.hawq.checkpoint import Arrays

logger = logging.getLogger(__name__)

_EPSILON = np.float32(1e-5)
_LEAST = np.float32(1e-8)
_BIAS_LIMIT = np.float32(2.0**31)

Float = NDArray[np.float32]


@dataclass(frozen=True)
class FloatLayer:
    """A layer's float weight and bias, with its batch norm folded in."""

    weight: Float
    bias: Float


def with_integers(arrays: Arrays, arch: Architecture, bits: Bits, where: str) -> Arrays:
    """`arrays` with integers and weight scales that follow from its float weights, if it has any.

    A warning names the first layer whose stored integers do not.
    """
    if f"{OUTPUT}.weight" not in arrays:
        return arrays
    layers = {name: _float_layer(name, arrays) for name in bits}
    stale = [name for name, layer in layers.items() if not _agrees(name, layer, bits, arrays)]
    if not stale:
        return arrays
    logger.warning(
        "%s: the integers of %d layers, first '%s', do not follow from its float weights; "
        "all are computed anew, as HAWQ does when it resumes",
        where,
        len(stale),
        stale[0],
    )
    reads = arch.reads()
    fresh = dict(arrays)
    for name, layer in layers.items():
        act = np.float32(arrays[f"{reads[name]}.act_scaling_factor"].item())
        fresh |= _integers(name, layer, bits[name].weight, act)
    return fresh


def scale_key(layer: str) -> str:
    """Key of a layer's weight scales."""
    return f"{layer}.{'fc' if layer == OUTPUT else 'convbn'}_scaling_factor"


def _float_layer(name: str, arrays: Arrays) -> FloatLayer:
    if name == OUTPUT:
        return FloatLayer(arrays[f"{name}.weight"], arrays[f"{name}.bias"])
    gamma, beta, mean, var = (
        arrays[f"{name}.bn.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
    )
    factor: Float = np.divide(gamma, np.sqrt(var + _EPSILON), dtype=np.float32)
    weight: Float = arrays[f"{name}.conv.weight"] * factor.reshape(-1, 1, 1, 1)
    bias: Float = (np.float32(0) - mean) * factor + beta
    return FloatLayer(weight, bias)


def _along(scale: Float, rank: int) -> Float:
    return scale.reshape(-1, *[1] * (rank - 1))


def _quantized(x: Float, scale: Float, low: Any, high: Any) -> Float:
    """``clamp(round((1 / scale) * x))``, half-even, as float32."""
    return np.clip(np.rint((np.float32(1) / scale) * x), np.float32(low), np.float32(high))


def _agrees(name: str, layer: FloatLayer, bits: Bits, arrays: Arrays) -> bool:
    """Whether stored weights are the float ones at the stored scale, up to one step of rounding."""
    stored = arrays.get(f"{name}.weight_integer")
    if stored is None or f"{name}.bias_integer" not in arrays:
        return False
    top = 2 ** (bits[name].weight - 1)
    scale = _along(arrays[scale_key(name)], layer.weight.ndim)
    expected = _quantized(layer.weight, scale, -top, top - 1)
    return bool((np.abs(expected - stored) <= 1).all())


def _integers(name: str, layer: FloatLayer, bits: int, act_scale: np.float32) -> Arrays:
    top = 2 ** (bits - 1)
    largest = np.abs(layer.weight.reshape(len(layer.weight), -1)).max(axis=1)
    scale = np.maximum(largest, _LEAST) / np.float32(top - 1)
    weight = _quantized(layer.weight, _along(scale, layer.weight.ndim), -top, top - 1)
    bias = _quantized(layer.bias, scale * act_scale, -_BIAS_LIMIT, _BIAS_LIMIT)
    return {
        scale_key(name): scale,
        f"{name}.weight_integer": weight,
        f"{name}.bias_integer": bias,
    }
