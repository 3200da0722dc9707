"""Data movement on integer tensors on CPUs: crop, pad, flatten, and the import of plain input."""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cpu.single_setting import SingleSetting
from tvm_q4.schedules.gather import constant, source
from tvm_q4.schedules.kernel import Kernel
from tvm_q4.schedules.layer import Layer


class Gather(SingleSetting):
    """One output element is one input element or a constant; see `gather.source`."""

    name = "cpu.gather"
    kinds = ("gather",)

    def emit(self, layer: Layer) -> None:
        kernel = Kernel(layer)
        n, c, h, w = layer.shape
        (_, tensor), out = layer.outputs[0], kernel.outputs[0]
        top, left = (0, 0) if tensor.layout.kind == "NCHW" else tensor.layout.halo[:2]
        physical = c if tensor.layout.kind == "NCHW" else tensor.layout.channels
        kernel.fill_halos()
        with T.parallel(0, n * h) as fused:
            image, row = fused // h, fused % h
            with T.grid(w, physical) as (col, channel):
                place, inside = source(layer, image, channel, row, col)
                value = kernel.inputs[0][tuple(_index(layer, place))]
                inside = tirx.all(channel < c, *inside)
                chosen = tirx.if_then_else(inside, value, tirx.const(constant(layer), tensor.dtype))
                at = [image, row + top, col + left, channel]
                if tensor.layout.kind == "NCHW":
                    at = [image, channel, row, col][: tensor.rank]
                T.buffer_store(out, chosen, at)


def _index(layer: Layer, place: tuple[Any, Any, Any, Any]) -> list[Any]:
    n, c, h, w = place
    layout = layer.inputs[0].layout
    if layout.kind == "NCHW":
        return [n, c, h, w][: layer.inputs[0].rank]
    return [n, h + layout.halo[0], w + layout.halo[1], c]
