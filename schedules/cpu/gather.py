"""Data movement on integer tensors: crop or subsample, pad, flatten, and the import of plain input.

These keep values and change places: the "option A" shortcut of CIFAR ResNets (every second pixel,
zero channels around), a flatten of more than one position, and integers given in plain NCHW.
"""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cpu.single_setting import SingleSetting
from tvm_q4.schedules.kernel import Kernel
from tvm_q4.schedules.layer import Layer


class Gather(SingleSetting):
    """One output element is one input element or a constant; see `source`."""

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
                constant = tirx.const(layer.ops[0].attrs.get("value", tensor.fill), tensor.dtype)
                value = kernel.inputs[0][tuple(_index(layer, place))]
                inside = tirx.all(channel < c, *inside)
                chosen = tirx.if_then_else(inside, value, constant)
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


def source(
    layer: Layer, n: Any, c: Any, h: Any, w: Any
) -> tuple[tuple[Any, Any, Any, Any], list[Any]]:
    """Logical place that output element (n, c, h, w) comes from, and conditions for having one."""
    a = layer.ops[0].attrs
    sizes = layer.inputs[0].shape
    if a["mode"] == "flatten":
        area = sizes[2] * sizes[3]
        return (n, c // area, c % area // sizes[3], c % sizes[3]), []
    if a["mode"] == "import":
        return (n, c, h, w), []
    place = [
        index * step + begin
        for index, step, begin in zip((n, c, h, w), a["strides"], a["begin"], strict=True)
    ]
    conditions = [
        tirx.all(index >= 0, index < size)
        for index, size, begin in zip(place, sizes, a["begin"], strict=True)
    ]
    return (place[0], place[1], place[2], place[3]), conditions
