"""Where the elements of a gather come from: crop or subsample, pad, flatten, import.

These keep values and change places: the "option A" shortcut of CIFAR ResNets (every second pixel,
zero channels around), a flatten of more than one position, and integers given in plain NCHW.
"""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import tirx
from tvm_q4.schedules.layer import Layer

Place = tuple[Any, Any, Any, Any]


def source(layer: Layer, n: Any, c: Any, h: Any, w: Any) -> tuple[Place, list[Any]]:
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


def constant(layer: Layer) -> int:
    """Value of output elements that have no source."""
    return int(layer.ops[0].attrs.get("value", layer.outputs[0][1].fill))
