"""Convolution and linear layers: int32 accumulators with an exactly folded zero point and bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tvm_q4 import ops
from tvm_q4.errors import NumericsError
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange
from tvm_q4.relay_passes.qdq_rules.real import Linear, Scale, Tensor, broadcast_scale

if TYPE_CHECKING:
    from tvm_q4.relay_passes.qdq_rules.emit import IntegerWriter


def accumulator(real: Linear, writer: IntegerWriter) -> Tensor:
    """Write a layer as ``q4.conv2d`` or ``q4.dense`` and say what its accumulator means.

    The bias is ``round_half_even(b / (s_a * s_w[o])) - z_a * sum_k w[o, k]`` (numerics.md). A
    channel whose weights are all zero is the constant ``b``; where its bias does not fit int32, it
    takes a power of two as its scale, in which a float32 bias is exact.

    Raises
    ------
    NumericsError
        If the bias of a channel with weights does not fit int32.
    """
    x, z = real.x, real.x.zero_point
    name = writer.names.take(real.name)
    rows = real.weight.reshape(real.weight.shape[0], -1).astype(np.int64)
    scale = float(x.scale.item()) * real.weight_scale
    steps = np.rint(real.bias / scale) - z * rows.sum(axis=1)
    too_big = ~((steps >= INT32_MIN) & (steps <= INT32_MAX))
    dead = too_big & ~rows.any(axis=1) & np.isfinite(real.bias)
    _refuse(too_big & ~dead, real, steps)
    if dead.any():
        scale, steps = _constant_channels(real.bias, scale, steps, dead)
    bias = steps.astype(np.int64)
    common = {"name": name, "zero_point": z, "weight_bits": real.weight_bits}
    build = ops.conv2d if real.kind == "conv2d" else ops.dense
    var = writer.emit(build(x.var, real.weight, bias.astype(np.int32), **common, **real.attrs))
    rank = len(real.shape)
    largest = max(abs(x.range.lo), abs(x.range.hi), abs(z))
    bound = np.abs(rows).sum(axis=1) * largest + np.abs(bias)
    constant = np.where(dead, real.bias, np.nan) if dead.any() else None
    return Tensor(
        origin=real.origin, shape=real.shape, var=var, name=name,
        range=IntRange(INT32_MIN, INT32_MAX), scale=broadcast_scale(scale, rank, 1),
        bound=broadcast_scale(bound, rank, 1), constant=constant,
    )  # fmt: skip


def _refuse(bad: NDArray[np.bool_], real: Linear, steps: NDArray[np.float64]) -> None:
    if bad.any():
        o = int(np.flatnonzero(bad)[0])
        msg = (
            f"{real.kind} {real.name!r} channel {o}: the bias {float(real.bias[o])!r} is "
            f"{float(steps[o]):.6g} steps of the accumulator's scale, beyond int32; give the layer "
            "larger scales or a smaller bias"
        )
        raise NumericsError(msg)


def _constant_channels(
    bias: Scale, scale: Scale, steps: NDArray[np.float64], dead: NDArray[np.bool_]
) -> tuple[Scale, NDArray[np.float64]]:
    """Scales and biases in which the `dead` channels hold their bias, |bias| < 2**30 steps."""
    fraction, exponent = np.frexp(bias)
    return (
        np.where(dead, np.ldexp(1.0, exponent - 30), scale),
        np.where(dead, np.rint(fraction * 2.0**30), steps),
    )
