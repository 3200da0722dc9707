"""Convolutions and linear layers on tensor cores: implicit GEMM with the epilogue in registers.

A block makes ``bm`` output pixels by ``bn`` output channels. Padding is read from the halo, so the
main loop has no bounds checks. With ``split_k`` several blocks sum a part of k each into scratch
memory, and a second kernel adds the parts (in any order: they are integers) and runs the epilogue.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.target import Target

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cuda import tile_space
from tvm_q4.schedules.cuda.conv_shape import ConvShape
from tvm_q4.schedules.cuda.device import device_of, family_of
from tvm_q4.schedules.cuda.kernel import CudaKernel, Row, constants, cuda_func, room_for
from tvm_q4.schedules.cuda.main_loop import MainLoop, group, threads
from tvm_q4.schedules.cuda.packing import pack_weights, packed_chunks, packed_rows
from tvm_q4.schedules.cuda.split_k import emit_reduction, scratch_shape, store_parts
from tvm_q4.schedules.cuda.tensor_core import CHUNK_WORDS, MmaForm, WarpTile, mma_form
from tvm_q4.schedules.cuda.tile import CHUNK_BYTES, Tile, resources, stated_blocks
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import round_up
from tvm_q4.schedules.rule import Params, ScheduleRule

_WIDEST_BLOCK = 128


class TensorCoreConv2d(ScheduleRule):
    """conv2d and dense of 4-bit and 8-bit data through ``mma``."""

    name = "cuda.tensor_core_conv2d"

    def applies(self, layer: Layer, target: Target) -> bool:
        """Convolutions and linear layers of packed 4-bit or 8-bit data."""
        if layer.kind not in ("conv2d", "dense") or target.kind.name != "cuda":
            return False
        plain = all(op.kind != "max_pool2d" for op in layer.ops)
        return plain and mma_form(layer, family_of(target)) is not None

    def space(self, layer: Layer, target: Target) -> list[Params]:
        """Tiles that fit registers, shared memory and the layer."""
        return tile_space.tiles(layer, form_of(layer, target), target)

    def predict(self, layer: Layer, target: Target, params: Params) -> float:
        """Predicted microseconds by the device's tile model."""
        return self.costs(layer, target, [params])[0]

    def costs(self, layer: Layer, target: Target, space: list[Params]) -> list[float]:
        """Predicted microseconds of every setting."""
        tiles = [_tile(params) for params in space]
        return tile_space.predict(layer, form_of(layer, target), tiles, target)

    def executes_as(self, layer: Layer, target: Target, params: Params) -> str:
        """Operand types and instruction, such as ``u4s4 mma.m16n8k64``."""
        return str(form_of(layer, target))

    def constants(self, layer: Layer, target: Target, params: Params) -> list[np.ndarray]:
        """Packed weights, then per-channel arrays."""
        form, tile = form_of(layer, target), _tile(params)
        weight = pack_weights(layer, _shape(layer, tile, form), form)
        return [weight, *constants(layer, param_channels(layer))]

    def workspace(
        self, layer: Layer, target: Target, params: Params
    ) -> list[tuple[tuple[int, ...], str]]:
        """Partial sums, where k is split."""
        tile = _tile(params)
        return [(scratch_shape(layer, tile), "int32")] if tile.split_k > 1 else []

    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> tirx.PrimFunc:
        """The kernel, or two of them where k is split."""
        form, tile, device = form_of(layer, target), _tile(params), device_of(target)
        residual = len(layer.inputs) > 1
        used = resources(tile, form.family, float(form.products), residual)
        emitter = _Emitter(layer, form, tile, stated_blocks(used, device))
        return cuda_func(symbol, target, emitter.emit)


def form_of(layer: Layer, target: Target) -> MmaForm:
    """How the products of a layer that the rule applies to run."""
    form = mma_form(layer, family_of(target))
    assert form is not None
    return form


def _tile(params: Params) -> Tile:
    return Tile(*(int(params[name]) for name in tile_space.NAMES))


def _shape(layer: Layer, tile: Tile, form: MmaForm) -> ConvShape:
    return ConvShape(layer, tile.bn, form.channels)


def param_channels(layer: Layer) -> int:
    """Length of per-channel constants: whole blocks, however wide."""
    return round_up(layer.shape[1], _WIDEST_BLOCK)


class _Emitter:
    """Emits one layer's kernels, the first so that `blocks` of its CTAs fit an SM (if not 0)."""

    def __init__(self, layer: Layer, form: MmaForm, tile: Tile, blocks: int) -> None:
        self.layer, self.form, self.tile, self.blocks = layer, form, tile, blocks
        self.shape = _shape(layer, tile, form)
        self.row_blocks = -(-self.shape.rows // tile.bm)
        self.channel_blocks = -(-self.shape.out_channels // tile.bn)
        self.slabs = -(-self.shape.chunks * CHUNK_BYTES // tile.bk_bytes)
        self.slabs_a_part = -(-self.slabs // tile.split_k)

    def emit(self) -> None:
        tile = self.tile
        packed = packed_rows(self.layer), packed_chunks(self.shape, self.form)
        scratch = scratch_shape(self.layer, tile) if tile.split_k > 1 else None
        kernel = CudaKernel(
            self.layer, param_channels(self.layer), packed[0] * packed[1] * CHUNK_WORDS, scratch
        )
        blocks, width = self.row_blocks * self.channel_blocks * tile.split_k, threads(tile)
        with T.launch_thread("blockIdx.x", blocks) as bx:
            with T.launch_thread("threadIdx.x", width) as tx, room_for(self.blocks):
                if scratch is None:
                    kernel.fill_halos(bx * width + tx, blocks * width)
                part, block = bx % tile.split_k, bx // tile.split_k
                first_row = T.Bind(block // self.channel_blocks * tile.bm)
                first_channel = T.Bind(block % self.channel_blocks * tile.bn)
                loop = MainLoop(
                    kernel,
                    self.shape,
                    self.form,
                    tile,
                    packed,
                    lambda row: self._pixel(first_row + row),
                    first_channel,
                    tx,
                )
                sums = loop.emit(*self._slabs(part))
                place = _Place(loop, first_row, first_channel)
                if scratch is None:
                    self._finish(kernel, sums, place)
                else:
                    store_parts(kernel, self.shape, tile, sums, place, part)
        if scratch is not None:
            emit_reduction(kernel, self.shape, tile)

    def _pixel(self, row: Any) -> tuple[Any, Any, Any]:
        """Place of a row of the product; the last one's for rows beyond."""
        return self.shape.place(T.Bind(tirx.min(row, self.shape.rows - 1)))

    def _slabs(self, part: Any) -> tuple[Any, Any]:
        """First slab and number of slabs of a part of k."""
        if self.tile.split_k == 1:
            return 0, self.slabs
        first = T.Bind(part * self.slabs_a_part)
        return first, T.Bind(tirx.min(self.slabs_a_part, self.slabs - first))

    def _finish(self, kernel: CudaKernel, sums: WarpTile, place: _Place) -> None:
        run = group(self.tile)
        for g in range(self.tile.wn // (4 * run)):
            rows = []
            for slot in range(sums.row_slots()):
                row = T.Bind(place.row(sums, slot))
                values = [sums.value(slot, (g * run + e) // 2, e % 2) for e in range(run)]
                rows.append(Row(self._pixel(row), values, row < self.shape.rows))
            channel = place.channel(g, run)
            if self.channel_blocks * self.tile.bn <= packed_rows(self.layer):
                kernel.finish(rows, channel, run)
                continue
            with T.If(channel < packed_rows(self.layer)), T.Then():
                kernel.finish(rows, channel, run)


class _Place:
    """Which rows and channels of the product a lane's sums are."""

    def __init__(self, loop: MainLoop, first_row: Any, first_channel: Any) -> None:
        self.loop, self.first_row, self.first_channel = loop, first_row, first_channel

    def row(self, sums: WarpTile, slot: int) -> Any:
        """Row of the product of a slot."""
        return self.first_row + self.loop.warp_row + sums.row(slot, self.loop.lane)

    def channel(self, g: int, run: int) -> Any:
        """First channel of this lane's run `g` of `run` channels."""
        lane = self.loop.lane % 4 * run
        return self.first_channel + self.loop.warp_channel + g * 4 * run + lane
