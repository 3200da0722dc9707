"""Quantization of float32 NCHW tensors into NHWC on CPUs."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_q4._compat import T, tirx
from tvm_q4.schedules import lanes
from tvm_q4.schedules.cpu.single_setting import SingleSetting
from tvm_q4.schedules.kernel import Kernel
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES


class Quantize(SingleSetting):
    """Float32 NCHW to integers in NHWC: scale, round half to even, add the zero point, clamp."""

    name = "cpu.quantize"
    kinds = ("quantize",)

    def emit(self, layer: Layer) -> None:
        kernel = Kernel(layer)
        n, _, h, w = layer.shape
        tensor = layer.outputs[0][1]
        top, left, _, _ = tensor.layout.halo
        packed = tensor.layout.channels == 4 and w >= LANES and np.dtype(tensor.dtype).itemsize == 1
        kernel.fill_halos()
        with T.parallel(0, n * h) as fused:
            image, row = fused // h, fused % h
            if packed:
                with T.serial(0, -(-w // LANES)) as tile:
                    _pack_pixels(kernel, image, row, tirx.min(tile * LANES, w - LANES))
                return
            for first in range(0, tensor.layout.channels, LANES):
                count = min(LANES, tensor.layout.channels - first)
                with T.serial(0, w) as col:
                    for channel in range(first, first + count):
                        at = [image, row + top, col + left, channel]
                        T.buffer_store(
                            kernel.outputs[0], _element(kernel, image, channel, row, col), at
                        )


def _element(kernel: Kernel, image: Any, channel: int, row: Any, col: Any) -> Any:
    """One quantized element; the halo's value in a padded channel."""
    layer, tensor = kernel.layer, kernel.layer.outputs[0][1]
    if channel >= layer.shape[1]:
        return tirx.const(tensor.fill, tensor.dtype)
    x = kernel.inputs[0][(image, channel, row, col)[: layer.data.rank]]
    return tirx.Cast(tensor.dtype, _quantized(kernel, x, channel, 1))


def _pack_pixels(kernel: Kernel, image: Any, row: Any, col: Any) -> None:
    """`LANES` pixels of up to four channels: one 32-bit word a pixel, the first channel lowest."""
    tensor = kernel.layer.outputs[0][1]
    top, left, _, _ = tensor.layout.halo
    word = lanes.splat(0, "int32")
    for channel in range(4):
        value = lanes.splat(tensor.fill, "int32")
        if channel < kernel.layer.shape[1]:
            x = lanes.load(kernel.inputs[0], [image, channel, row, col])
            value = _quantized(kernel, x, channel, LANES)
        byte = value & lanes.splat(0xFF, "int32")
        word = word | (byte << lanes.splat(8 * channel, "int32"))
    data = tirx.reinterpret(f"{tensor.dtype}x{4 * LANES}", word)
    lanes.store(kernel.outputs[0], [image, row + top, col + left, 0], data, 4 * LANES)


def _quantized(kernel: Kernel, x: Any, channel: int, count: int) -> Any:
    """``clamp(rint(x / s) + z, qmin, qmax)`` as int32, in the form that the operator states."""
    op = kernel.layer.ops[0]
    a, zero = op.attrs, int(op.params["zero_point"].ravel()[0])

    def every(value: Any, dtype: str = "float32") -> Any:
        scalar = tirx.const(value, dtype) if isinstance(value, (int, float)) else value
        return scalar if count == 1 else tirx.Broadcast(scalar, count)

    if a["form"] == "mul_div":
        scaled = tirx.div(x * every(a["numerator"]), every(a["denominator"]))
    elif a["form"] == "divide":
        scaled = tirx.div(x, every(kernel.scalar(0, "scale", channel)))
    else:
        scaled = x * every(kernel.scalar(0, "scale", channel))
    limited = tirx.max(tirx.nearbyint(scaled), every(float(a["qmin"] - zero)))
    limited = tirx.min(limited, every(float(a["qmax"] - zero)))
    return tirx.Cast("int32" if count == 1 else f"int32x{count}", limited) + every(zero, "int32")
