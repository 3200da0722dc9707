"""Kernels at the edges of the integer network: quantize, concat, and element-wise layers on their own."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

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
                    self._copy(kernel, i, out, [image, row + top, col + left], offset, (image, row, col))
                    offset += channels

    @staticmethod
    def _copy(kernel: Kernel, i: int, out: Any, at: list[Any], offset: int, place: tuple[Any, Any, Any]) -> None:
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
        n, c, h, w = layer.shape
        (_, tensor), out = layer.outputs[0], kernel.outputs[0]
        top, left, _, _ = tensor.layout.halo
        physical = tensor.layout.channels
        kernel.fill_halos()
        with T.parallel(0, n * h) as fused:
            image, row = fused // h, fused % h
            for first in range(0, physical, LANES):
                count = min(LANES, physical - first)
                with T.serial(0, w) as col:
                    for channel in range(first, first + count):
                        at = [image, row + top, col + left, channel]
                        value = tirx.const(tensor.fill, tensor.dtype)
                        if channel < c:
                            x = kernel.inputs[0][(image, channel, row, col)[: layer.data.rank]]
                            value = self._value(layer, kernel, x, channel)
                        T.buffer_store(out, value, at)

    @staticmethod
    def _value(layer: Layer, kernel: Kernel, x: Any, channel: int) -> Any:
        a, op = layer.ops[0].attrs, layer.ops[0]
        zero = int(op.params["zero_point"].ravel()[0])
        if a["form"] == "mul_div":
            scaled = tirx.div(x * tirx.const(a["numerator"], "float32"), tirx.const(a["denominator"], "float32"))
        elif a["form"] == "divide":
            scaled = tirx.div(x, kernel.scalar(0, "scale", channel))
        else:
            scaled = x * kernel.scalar(0, "scale", channel)
        lo, hi = float(a["qmin"] - zero), float(a["qmax"] - zero)
        limited = tirx.min(tirx.max(tirx.nearbyint(scaled), tirx.const(lo, "float32")), tirx.const(hi, "float32"))
        return tirx.Cast(op.dtype, tirx.Cast("int32", limited) + zero)
