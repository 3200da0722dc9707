"""Tiles that a layer's tensor-core kernel may have, and their predicted times."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
from tvm.target import Target

from tvm_q4.quant import INT32_MAX
from tvm_q4.schedules.cuda.conv_shape import ConvShape
from tvm_q4.schedules.cuda.cost import predict_us
from tvm_q4.schedules.cuda.device import device_of
from tvm_q4.schedules.cuda.packing import packed_rows
from tvm_q4.schedules.cuda.tensor_core import MmaForm
from tvm_q4.schedules.cuda.tile import CHUNK_BYTES, GemmShape, Tile, resources
from tvm_q4.schedules.layer import Layer, Tensor
from tvm_q4.schedules.rule import Params

NAMES = ("bm", "bn", "bk", "wm", "wn", "stages", "split_k")
"""Parameters, in the order of `Tile`'s fields."""

_BLOCKS_M, _BLOCKS_N = (16, 32, 64, 128, 256), (32, 64, 128)
_WARPS_M, _WARPS_N = (16, 32, 64), (32, 64)
_SLABS = (32, 64, 128)
_STAGES = (3, 4, 2, 5)  # in the order in which equal predictions are taken
_SPLITS = (1, 2, 4, 8, 16)
_MOST_THREADS = 256
_MOST_REGISTERS = 232
_FEWEST_SLABS = 2  # that a part of a split k has


def tiles(layer: Layer, form: MmaForm, target: Target) -> list[Params]:
    """Parameter settings that fit registers, shared memory and the layer."""
    shared = int(target.attrs["max_shared_memory_per_block"])
    extents = layer.shape[0] * layer.shape[2] * layer.shape[3], layer.shape[1]
    scratch = extents[0] * packed_rows(layer)
    # Four lanes store a run of channels: with 4 bits, a narrow warp's fill half a sector.
    halves_stores = any(t.layout.bits == 4 for _, t in layer.outputs)
    out: list[Params] = []
    choices = _family_tiles(form.family, form.widen, shared)
    sizes_m, sizes_n = sorted({t.bm for t in choices}), sorted({t.bn for t in choices})
    chunks = {bn: ConvShape(layer, bn, form.channels).chunks for bn in sizes_n}
    for tile in choices:
        if _too_large(tile.bm, extents[0], sizes_m) or _too_large(tile.bn, extents[1], sizes_n):
            continue
        slabs = -(-chunks[tile.bn] * CHUNK_BYTES // tile.bk_bytes)
        if tile.stages > max(2, slabs) or (halves_stores and tile.wn < _WARPS_N[-1] <= tile.bn):
            continue
        for split in _SPLITS:
            if split == 1 or _splits(slabs, split, scratch):
                values = (tile.bm, tile.bn, tile.bk_bytes, tile.wm, tile.wn, tile.stages, split)
                out.append(dict(zip(NAMES, values, strict=True)))
    return out


def _too_large(block: int, extent: int, sizes: list[int]) -> bool:
    """Whether the next smaller block would hold the whole extent."""
    smaller = [s for s in sizes if s < block]
    return bool(smaller) and smaller[-1] >= extent


def _splits(slabs: int, split: int, scratch: int) -> bool:
    """Whether every part has slabs, and int32 counts the partial sums (`scratch` words a part)."""
    most = -(-slabs // split)
    full = -(-slabs // most) == split
    return full and most >= _FEWEST_SLABS and split * scratch <= INT32_MAX


@cache
def _family_tiles(family: int, widen: bool, shared: int) -> tuple[Tile, ...]:
    """Tiles without a split k that a family can run."""
    warps_m = _WARPS_M if family != 75 else tuple(w for w in _WARPS_M if w >= 32)
    stages = _STAGES if family != 75 else (2,)
    found = []
    for bm, bn, bk, wm, wn, depth in product(
        _BLOCKS_M, _BLOCKS_N, _SLABS, warps_m, _WARPS_N, stages
    ):
        if bm % wm or bn % wn:
            continue
        tile = Tile(bm, bn, bk, wm, wn, depth, 1)
        used = resources(tile, family, 2.0 if widen else 1.0)
        fits = used.threads <= _MOST_THREADS and used.registers <= _MOST_REGISTERS
        if fits and used.shared <= shared:
            found.append(tile)
    return tuple(found)


def predict(layer: Layer, form: MmaForm, choices: list[Tile], target: Target) -> list[float]:
    """Predicted microseconds of tiles on the target's device."""
    device = device_of(target)
    products = {
        bn: gemm_shape(layer, form, ConvShape(layer, bn, form.channels))
        for bn in {tile.bn for tile in choices}
    }
    return [predict_us(products[tile.bn], tile, device).us for tile in choices]


def gemm_shape(layer: Layer, form: MmaForm, shape: ConvShape, rows: int | None = None) -> GemmShape:
    """The layer's matrix product as the tile model takes it; `rows` where blocks make more."""
    k_bytes = shape.chunks * CHUNK_BYTES
    skips = [t for i, t in enumerate(layer.inputs) if i != layer.ops[0].refs[0][1]]
    return GemmShape(
        m=rows or shape.rows,
        n=packed_rows(layer),
        k_bytes=k_bytes,
        k_ops=shape.chunks * form.channels,
        a_bytes_unique=_bytes(layer.data),
        # Not the rows' padding to whole slabs: it is not read.
        b_bytes=packed_rows(layer) * k_bytes * form.products,
        out_bytes=sum(_bytes(t) for _, t in layer.outputs),
        # Not their halos, which no epilogue reads: whether there is one depends on other readers.
        skip_bytes=sum(_bytes(replace(t, layout=replace(t.layout, halo=(0,) * 4))) for t in skips),
        bits_mma=form.bits,
        widen=form.widen,
    )


def _bytes(tensor: Tensor) -> int:
    count = int(np.prod(tensor.physical_shape, dtype=np.int64))
    return count * np.dtype(tensor.physical_dtype).itemsize
