"""Maximum and average pooling on CPUs, vectors of channels at a time, with a fused epilogue."""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules import lanes, windows
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
                    mean = windows.mean(layer, value, row, col)
                    value = lanes.cast(mean, layer.ops[0].dtype)
                kernel.finish(T.Bind(value), image, row, col, block * LANES)


def _reduce(
    layer: Layer, kernel: Kernel, acc: Any, image: Any, row: Any, col: Any, c0: Any
) -> None:
    a = layer.ops[0].attrs
    data = layer.ops[0].refs[0][1]
    maximum = layer.kind == "max_pool2d"
    start = tirx.min_value(layer.data.dtype) if maximum else tirx.const(0, "int32")
    lanes.store(acc, [0], tirx.Broadcast(start, LANES))
    with T.grid(*a["pool_size"]) as (r, s):
        y, x, inside = windows.source(layer, row, col, r, s)
        with T.If(inside):
            with T.Then():
                value = lanes.load(kernel.inputs[data], kernel.pixel(data, image, y, x, c0))
                old = lanes.load(acc, [0])
                if maximum:
                    lanes.store(acc, [0], tirx.max(old, value))
                else:
                    zero = lanes.splat(a["zero_point"], "int32")
                    lanes.store(acc, [0], old + lanes.cast(value, "int32") - zero)
