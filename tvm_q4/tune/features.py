"""Numbers that the cost model sees of a candidate: its layer, its parameters, what they lead to."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tvm.target import Target

from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.rule import Params
from tvm_q4.tune.task import Task

_SHAPE = re.compile(
    r"^\w+ n(?P<n>\d+) c(?P<c>\d+) (?P<h>\d+)x(?P<w>\d+).*? o(?P<o>\d+)"
    r"(?: k(?P<kh>\d+)x(?P<kw>\d+) s(?P<sh>\d+)x(?P<sw>\d+) .*? g(?P<g>\d+))? w(?P<bits>\d+)"
)
_ADDS = re.compile(r"=add\(")


@cache
def shape_features(signature: str) -> tuple[float, ...] | None:
    """Logarithms of the extents in a signature, for the distance between two; None without any."""
    match = _SHAPE.match(signature)
    if match is None:
        return None
    extents = [int(v) if v is not None else 1 for v in match.groupdict().values()]
    return (*(math.log2(v) for v in extents), float(len(_ADDS.findall(signature))))


def distance(one: str, other: str) -> float:
    """How unlike two signatures are by their extents; infinite where they have none."""
    a, b = shape_features(one), shape_features(other)
    if a is None or b is None:
        return math.inf
    return math.dist(a, b)


def rows(task: Task) -> NDArray[np.float32]:
    """Features of every setting in the task's space, one row each."""
    derive = _DERIVED.get(task.rule.name)
    least = min(task.costs)
    order = np.argsort(np.argsort(task.costs, kind="stable"), kind="stable")
    shape = [*(shape_features(task.signature) or ()), *_sizes(task.layer)]
    table = []
    for index, params in enumerate(task.space):
        predicted = [_log(task.costs[index] / least), order[index] / len(task.space)]
        derived = derive(task.layer, task.target, params) if derive else []
        table.append([*shape, *predicted, *_values(params), *derived])
    return np.array(table, np.float32)


def _values(params: Mapping[str, int | str]) -> list[float]:
    """Numbers of the parameters, in the order of their names; a text counts as its checksum."""
    return [
        _log(v) if isinstance(v, int) else float(zlib.crc32(v.encode()) % 997)
        for _, v in sorted(params.items())
    ]


def _sizes(layer: Layer) -> list[float]:
    """Work, bytes of each kind, and work for each byte."""
    n, o, oh, ow = layer.shape
    weight = layer.ops[0].params.get("weight")
    macs = n * oh * ow * (weight.size if weight is not None else o)
    tensors = [sum(_bytes(t.physical_shape, t.physical_dtype) for t in layer.inputs)]
    tensors.append(sum(_bytes(t.physical_shape, t.physical_dtype) for _, t in layer.outputs))
    tensors.append(
        weight.size * layer.ops[0].attrs["weight_bits"] // 8 if weight is not None else 0
    )
    return [_log(macs), *map(_log, tensors), _log(macs / sum(tensors))]


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _log(value: float) -> float:
    return math.log2(value) if value > 0 else -1.0


def _direct_conv2d(layer: Layer, target: Target, params: Params) -> list[float]:
    """Register tile, its reuse, work that overlapping tiles repeat, parallel chunks a core."""
    n, out, oh, ow = layer.shape
    rows_, cols = (1, n) if oh == ow == 1 else (oh, ow)
    tile_h, tile_w = int(params["tile_h"]), int(params["tile_w"])
    blocks = int(params["blocks"])
    pixels = tile_h * tile_w
    tiles = math.ceil(rows_ / tile_h) * math.ceil(cols / tile_w)
    chunks = math.ceil(out / (16 * blocks)) * n * math.ceil(rows_ / tile_h)
    cores = int(target.attrs.get("num-cores", 1))
    return [
        pixels * blocks,
        pixels * blocks / (pixels + blocks),
        tiles * pixels / (rows_ * cols),
        _log(tiles),
        math.ceil(chunks / cores) * cores / chunks,
        _log(chunks / cores),
    ]


def _tensor_core(layer: Layer, target: Target, params: Params) -> list[float]:
    """What the tile model computes on its way: waves, the time of each unit, residency."""
    from tvm_q4.schedules.cuda import tile_space
    from tvm_q4.schedules.cuda.conv_shape import ConvShape
    from tvm_q4.schedules.cuda.cost import occupancy, predict_us
    from tvm_q4.schedules.cuda.device import device_of, family_of
    from tvm_q4.schedules.cuda.tensor_core import mma_form
    from tvm_q4.schedules.cuda.tile import Tile

    form = mma_form(layer, family_of(target))
    assert form is not None
    tile = Tile(*(int(params[name]) for name in tile_space.NAMES))
    shape = tile_space.gemm_shape(layer, form, ConvShape(layer, tile.bn, form.channels))
    device = device_of(target)
    parts = predict_us(shape, tile, device).parts
    resident = occupancy(tile, device, shape.b_ratio, shape.skip_bytes > 0)
    names = ("waves", "mma", "shared", "alu", "port", "l2", "dram", "epilogue", "reduce")
    return [resident, tile.warps, *(_log(parts.get(name, 0.0)) for name in names)]


_DERIVED: dict[str, Callable[[Layer, Target, Params], list[float]]] = {
    "cpu.direct_conv2d": _direct_conv2d,
    "cuda.tensor_core_conv2d": _tensor_core,
}
