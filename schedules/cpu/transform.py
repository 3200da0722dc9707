"""Kernels at the integer network's edges: quantize, concat, element-wise layers on their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.target import Target

from tvm_q4._compat import T, tirx
from tvm_q4.schedules import lanes
from tvm_q4.schedules.kernel import Kernel, prim_func
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES
from tvm_q4.schedules.rule import Params, ScheduleRule


class _Single(ScheduleRule):
    """A rule with one parameter setting; subclasses name their layer kind and emit the body."""

    kinds: tuple[str, ...] = ()

    def applies(self, layer: Layer, target: Target) -> bool:
        return layer.kind in self.kinds and target.kind.name == "llvm"

    def space(self, layer: Layer, target: Target) -> list[Params]:
        return [{}]

    def predict(self, layer: Layer, target: Target, params: Params) -> float:
        n, c, h, w = layer.shape
        return float(n * c * h * w)

    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> tirx.PrimFunc:
        return prim_func(symbol, lambda: self.emit(layer))

    def emit(self, layer: Layer) -> None:
        """Emit the function's body."""
        raise AssertionError(f"{self.name} emits nothing")


class Elementwise(_Single):
    """Requantize, residual add and dequantize without an anchor."""

    name = "cpu.elementwise"
    kinds = ("elementwise",)

    def emit(self, layer: Layer) -> None:
        kernel = Kernel(layer)
        n, c, h, w = layer.shape
        kernel.fill_halos()
        with T.parallel(0, n * h) as fused:
            with T.grid(w, -(-c // LANES)) as (col, block):
                kernel.finish(None, fused // h, fused % h, col, block * LANES)


class Concat(_Single):
    """Channels of several tensors, one after the other."""

    name = "cpu.concat"
    kinds = ("concat",)

    def applies(self, layer: Layer, target: Target) -> bool:
        """Concatenations along the channels."""
        return super().applies(layer, target) and int(layer.ops[0].attrs["axis"]) in (1, -3)

    def emit(self, layer: Layer) -> None:
        kernel = Kernel(layer)
        n, _, h, w = layer.shape
        out, (_, tensor) = kernel.outputs[0], layer.outputs[0]
        top, left, _, _ = tensor.layout.halo
        kernel.fill_halos()
        with T.parallel(0, n * h) as fused:
            image, row = fused // h, fused % h
            with T.serial(0, w) as col:
                offset = 0
                for _, i in layer.ops[0].refs:
                    channels = layer.inputs[i].shape[1]
                    self._copy(
                        kernel, i, out, [image, row + top, col + left], offset, (image, row, col)
                    )
                    offset += channels

    @staticmethod
    def _copy(
        kernel: Kernel, i: int, out: Any, at: list[Any], offset: int, place: tuple[Any, Any, Any]
    ) -> None:
        channels, source = kernel.layer.inputs[i].shape[1], kernel.inputs[i]
        for size, first, count in (
            (LANES, 0, channels // LANES),
            (1, channels // LANES * LANES, channels % LANES),
        ):
            if count:
                with T.serial(0, count) as c:
                    index = kernel.pixel(i, *place, first + c * size)
                    value = lanes.load(source, index, size) if size > 1 else source[tuple(index)]
                    target = [*at, offset + first + c * size]
                    if size > 1:
                        lanes.store(out, target, value, size)
                    else:
                        T.buffer_store(out, value, target)


class Quantize(_Single):
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
