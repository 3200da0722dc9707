"""HAWQ's dyadic arithmetic: from scales to multipliers and shifts, and what saturates.

``hawq-v3.md`` section 2: a product of two float32 scales is rounded to float32, its ratio to the
consumer's scale is taken in float64 and becomes ``(m, e)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError, NumericsError
from tvm_q4.frontend.hawq.bits import Bits
from tvm_q4.frontend.hawq.checkpoint import Arrays
from tvm_q4.frontend.hawq.folding import scale_key
from tvm_q4.quant import INT32_MAX, IntRange, dyadic, dyadic_array, round_shift

_BIAS_LIMIT = 1 << 31
_SHIFTED = 255
"""Largest magnitude of 8-bit data in kernels that shift signed input by 128."""


@dataclass(frozen=True)
class Ratio:
    """Multipliers and shifts, int32 [1] or [C]."""

    multiplier: NDArray[np.int32]
    shift: NDArray[np.int32]


@dataclass(frozen=True)
class IntegerLayer:
    """Weight int8, bias int64 (HAWQ's saturated ones reach 2**31) and weight scales float32 [O]."""

    name: str
    weight: NDArray[np.int8]
    bias: NDArray[np.int64]
    scale: NDArray[np.float32]
    bits: int


def accumulator_scale(act: np.float32, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale of an accumulator, [O]: the float64 product rounded to float32."""
    return (np.float64(act) * weight.astype(np.float64)).astype(np.float32)


def ratio_of(scale: NDArray[np.float32], out: np.float32, where: str) -> Ratio:
    """Multipliers and shifts from `scale` ([1] or [C]) to the consumer's scale `out`."""
    m, e = dyadic_array(scale.astype(np.float64) / np.float64(out), where)
    return Ratio(m, e)


def integer_layer(name: str, arrays: Arrays, bits: Bits, where: str) -> IntegerLayer:
    """Integers of a layer, checked.

    Raises
    ------
    InputError
        If a value is no integer, or beyond its bits.
    """
    top = 1 << (bits[name].weight - 1)
    weight = _integers(f"{name}.weight_integer", arrays, -top, top - 1, where)
    bias = _integers(f"{name}.bias_integer", arrays, -_BIAS_LIMIT, _BIAS_LIMIT, where)
    scale = np.broadcast_to(arrays[scale_key(name)].reshape(-1), (len(weight),))
    return IntegerLayer(name, weight.astype(np.int8), bias, scale, bits[name].weight)


def _integers(key: str, arrays: Arrays, lo: int, hi: int, where: str) -> NDArray[np.int64]:
    values = arrays[key].astype(np.float64)
    bad = (values != np.rint(values)) | (values < lo) | (values > hi)
    if bad.any():
        found = values.ravel()[int(np.argmax(bad.ravel()))]
        msg = f"{where}: '{key}' holds {found:.8g}, expected integers in {lo}..{hi}"
        raise InputError(f"{msg}; use another file or bit config")
    return values.astype(np.int64)


def fold_saturated(
    layer: IntegerLayer, ratio: Ratio, data: IntRange, rounding: str
) -> tuple[IntegerLayer, Ratio]:
    """Channels whose accumulator does not fit int32, as the constants that they are.

    A channel that batch norm has switched off has a tiny weight scale, and its bias saturates at
    2**31 (there HAWQ's floats hold what an int32 cannot). Its result does not depend on the data:
    it becomes the bias, with weights 0 and the ratio 1.

    Raises
    ------
    NumericsError
        If such a channel's result does depend on the data.
    """
    rows = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
    wide = np.abs(rows).sum(axis=1) * _SHIFTED + np.abs(layer.bias) > INT32_MAX
    if not wide.any():
        return layer, ratio
    up, down = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    ends = []
    for above, below in ((down, up), (up, down)):
        reached = layer.bias + above * max(data.hi, 0) + below * min(data.lo, 0)
        product = reached * ratio.multiplier.astype(np.int64)
        ends.append(round_shift(product, ratio.shift, rounding))
    varies = wide & ((ends[0] != ends[1]) | (np.abs(ends[0]) > INT32_MAX))
    if varies.any():
        o = int(np.argmax(varies))
        msg = (
            f"{layer.name} channel {o}: its accumulator may reach {int(layer.bias[o])} and its "
            f"result {int(ends[0][o])}..{int(ends[1][o])} depends on it; beyond int32 only "
            "constant channels are exact: set the channel's weights to 0"
        )
        raise NumericsError(msg)
    weight, bias = layer.weight.copy(), np.where(wide, ends[0], layer.bias)
    weight[wide] = 0
    one, shift = dyadic(1.0)
    m = np.where(wide, one, ratio.multiplier).astype(np.int32)
    e = np.where(wide, shift, ratio.shift).astype(np.int32)
    return IntegerLayer(layer.name, weight, bias, layer.scale, layer.bits), Ratio(m, e)


def int32_bias(layer: IntegerLayer) -> NDArray[Any]:
    """Bias for a layer whose accumulators become floats: 2**31 - 1 and 2**31 are one float32."""
    return np.clip(layer.bias, -INT32_MAX, INT32_MAX).astype(np.int32)
