"""Windows of pools: which pixels they read, how many of those count, and the mean of their sum."""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import tirx
from tvm_q4.schedules import lanes
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES


def source(layer: Layer, row: Any, col: Any, r: Any, s: Any) -> tuple[Any, Any, Any]:
    """Row and column that position (r, s) of a window reads, and whether they are inside."""
    a = layer.ops[0].attrs
    height, width = layer.data.shape[2:]
    y = row * a["strides"][0] + r * a["dilation"][0] - a["padding"][0]
    x = col * a["strides"][1] + s * a["dilation"][1] - a["padding"][1]
    return y, x, tirx.all(y >= 0, y < height, x >= 0, x < width)


def mean(layer: Layer, total: Any, row: Any, col: Any, width: int = LANES) -> Any:
    """Rounded mean of a sum, plus the zero point, as int32."""
    a = layer.ops[0].attrs
    count = lanes.splat(_count(layer, row, 0) * _count(layer, col, 1), "int32", width)
    if a["rounding"] == "nearest":
        half = tirx.truncdiv(count, lanes.splat(2, "int32", width))
        positive = total >= lanes.splat(0, "int32", width)
        total = tirx.Select(positive, total + half, total - half)
    return tirx.truncdiv(total, count) + lanes.splat(a["zero_point"], "int32", width)


def _count(layer: Layer, position: Any, axis: int) -> Any:
    """Counted positions of a window along one axis (PyTorch's rule for padding and ceil mode)."""
    a = layer.ops[0].attrs
    size, pads = layer.data.shape[2 + axis], (a["padding"][axis], a["padding"][axis + 2])
    start = position * a["strides"][axis] - pads[0]
    end = tirx.min(start + a["pool_size"][axis], size + pads[1])
    if a["count_include_pad"]:
        return end - start
    return tirx.min(end, size) - tirx.max(start, 0)
