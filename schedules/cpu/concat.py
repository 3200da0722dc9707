"""Concatenation along channels on CPUs."""

from __future__ import annotations

from typing import Any

from tvm.target import Target

from tvm_q4._compat import T
from tvm_q4.schedules import lanes
from tvm_q4.schedules.cpu.single_setting import SingleSetting
from tvm_q4.schedules.kernel import Kernel
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES


class Concat(SingleSetting):
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
