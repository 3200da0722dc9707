"""Maximum and average pooling on CPUs, vectors of channels at a time, with a fused epilogue."""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules import lanes
from tvm_q4.schedules.cpu.single_setting import SingleSetting
from tvm_q4.schedules.kernel import Kernel
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES


class Pool2d(SingleSetting):
    """max_pool2d and avg_pool2d: padding is skipped by a test of each window position."""

    name = "cpu.pool2d"
    kinds = ("max_pool2d", "avg_pool2d")

    def emit(self, layer: Layer) -> None:
        kernel = Kernel(layer)
        n, c, h, w = layer.shape
        dtype = layer.data.dtype if layer.kind == "max_pool2d" else "int32"
        kernel.fill_halos()
        with T.parallel(0, n * h) as fused:
            image, row = fused // h, fused % h
            acc = T.alloc_buffer((LANES,), dtype, scope="local")
            with T.grid(w, -(-c // LANES)) as (col, block):
                _reduce(layer, kernel, acc, image, row, col, block * LANES)
                value = lanes.load(acc, [0])
                if layer.kind == "avg_pool2d" and layer.ops[0].attrs["rounding"] != "sum":
                    value = _mean(layer, value, row, col)
                kernel.finish(T.Bind(value), image, row, col, block * LANES)


def _reduce(
    layer: Layer, kernel: Kernel, acc: Any, image: Any, row: Any, col: Any, c0: Any
) -> None:
    a = layer.ops[0].attrs
    source = kernel.inputs[layer.ops[0].refs[0][1]]
    height, width = layer.data.shape[2:]
    maximum = layer.kind == "max_pool2d"
    start = tirx.min_value(layer.data.dtype) if maximum else tirx.const(0, "int32")
    lanes.store(acc, [0], tirx.Broadcast(start, LANES))
    with T.grid(*a["pool_size"]) as (r, s):
        y = row * a["strides"][0] + r * a["dilation"][0] - a["padding"][0]
        x = col * a["strides"][1] + s * a["dilation"][1] - a["padding"][1]
        with T.If(tirx.all(y >= 0, y < height, x >= 0, x < width)):
            with T.Then():
                value = lanes.load(source, kernel.pixel(layer.ops[0].refs[0][1], image, y, x, c0))
                old = lanes.load(acc, [0])
                if maximum:
                    lanes.store(acc, [0], tirx.max(old, value))
                else:
                    zero = lanes.splat(a["zero_point"], "int32")
                    lanes.store(acc, [0], old + lanes.cast(value, "int32") - zero)


def _mean(layer: Layer, total: Any, row: Any, col: Any) -> Any:
    """Rounded mean of a sum, plus the zero point, in the data's type."""
    a = layer.ops[0].attrs
    count = tirx.Broadcast(_count(layer, row, 0) * _count(layer, col, 1), LANES)
    if a["rounding"] == "nearest":
        half = tirx.truncdiv(count, lanes.splat(2, "int32"))
        total = tirx.Select(total >= lanes.splat(0, "int32"), total + half, total - half)
    mean = tirx.truncdiv(total, count) + lanes.splat(a["zero_point"], "int32")
    return lanes.cast(mean, layer.ops[0].dtype)


def _count(layer: Layer, position: Any, axis: int) -> Any:
    """Counted positions of a window along one axis (PyTorch's rule for padding and ceil mode)."""
    a = layer.ops[0].attrs
    size, pads = layer.data.shape[2 + axis], (a["padding"][axis], a["padding"][axis + 2])
    start = position * a["strides"][axis] - pads[0]
    end = tirx.min(start + a["pool_size"][axis], size + pads[1])
    if a["count_include_pad"]:
        return end - start
    return tirx.min(end, size) - tirx.max(start, 0)
