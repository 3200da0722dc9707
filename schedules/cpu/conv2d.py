"""Convolution and linear layers on CPUs: a register-tiled implicit GEMM with a fused epilogue.

One tile is ``tile_h * tile_w`` pixels by ``blocks * 16`` output channels, accumulated in registers
over the whole window and all input channels; the epilogue then turns it into the layer's outputs,
so no int32 tensor reaches memory. Padding is read from the halo. Tiles at the end of a row are
moved back to overlap the one before: they compute the same values again and need no tail.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
from tvm.target import Target

from tvm_q4._compat import T, tirx
from tvm_q4.quant import INT32_MAX
from tvm_q4.schedules import lanes
from tvm_q4.schedules.cpu.dot import DotForm, dot_forms
from tvm_q4.schedules.cpu.packing import channel_window, pack_weights
from tvm_q4.schedules.kernel import Kernel, channel_params, prim_func
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES, round_up
from tvm_q4.schedules.rule import Params, ScheduleRule

_TILE_W = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
_BLOCKS = (1, 2, 3, 4, 6, 8)


class _Geometry:
    """Loop extents of one layer: a dense layer is a row of `n` pixels, each of one position."""

    def __init__(self, layer: Layer) -> None:
        op = layer.ops[0]
        n, out, oh, ow = layer.shape
        weight = op.params["weight"].shape
        self.stride = op.attrs.get("strides", [1, 1])
        self.dilation = op.attrs.get("dilation", [1, 1])
        self.padding = op.attrs.get("padding", [0, 0, 0, 0])
        single = oh == ow == 1 and layer.data.shape[2:] == (1, 1) and not any(self.padding)
        self.flat = single and tuple(weight[2:]) in ((), (1, 1))
        self.images, self.rows, self.cols = (1, 1, n) if self.flat else (n, oh, ow)
        self.kernel = (1, 1) if self.flat else tuple(int(k) for k in weight[2:])
        self.blocks = round_up(out, LANES) // LANES

    def output(self, image: Any, row: Any, col: Any) -> tuple[Any, Any, Any]:
        """Logical (n, h, w) of a position in the loop nest."""
        return (col, 0, 0) if self.flat else (image, row, col)

    def source(self, image: Any, row: Any, col: Any, r: Any, s: Any) -> tuple[Any, Any, Any]:
        """Logical (n, h, w) of the input that kernel position (r, s) reads there."""
        if self.flat:
            return col, 0, 0
        h = row * self.stride[0] + r * self.dilation[0] - self.padding[0]
        return image, h, col * self.stride[1] + s * self.dilation[1] - self.padding[1]


def _finish_cost(layer: Layer, blocks: int, free: int) -> float:
    """Cycles of the epilogue for one vector, when the accumulators leave `free` registers.

    Constants that have no register are read from the stack each time, and a cache line of four
    blocks is touched more often where a tile has fewer.
    """
    tensors = len(layer.outputs) + len(layer.inputs) - 1
    cost, constants = 4.0 + 3.0 * tensors / min(blocks, 4), 3
    for _, op in layer.epilogue:
        cost += {"add": 10.0, "requantize": 6.0}.get(op.kind, 4.0) * (1 if op.high else 2)
        constants += 6 if op.kind == "add" else 4
    return cost + 0.6 * max(0, constants - free)


class DirectConv2d(ScheduleRule):
    """conv2d and dense through one of the CPU's dot-product forms."""

    name = "cpu.direct_conv2d"

    def applies(self, layer: Layer, target: Target) -> bool:
        """Convolutions and linear layers of 8-bit containers on a CPU."""
        bytes_wide = layer.kind in ("conv2d", "dense") and layer.data.dtype in ("int8", "uint8")
        return bytes_wide and target.kind.name == "llvm"

    def space(self, layer: Layer, target: Target) -> list[Params]:
        """Register tiles of the best dot-product form that fit registers and image."""
        geometry = _Geometry(layer)
        form = self._form(layer, target, {})
        spare = 2 if self._four_bit(layer, form) else 1
        out: list[Params] = []
        for tile_w, tile_h, blocks in itertools.product(_TILE_W, (1, 2, 4, 7), _BLOCKS):
            fits = (
                tile_w <= geometry.cols
                and tile_h <= geometry.rows
                and geometry.blocks % blocks == 0
            )
            if not fits or tile_w * tile_h * blocks + spare * blocks > form.registers:
                continue
            if blocks > 1 and not self._blocks_share_window(layer, blocks, form):
                continue
            out.append({"form": form.name, "tile_h": tile_h, "tile_w": tile_w, "blocks": blocks})
        return out

    def predict(self, layer: Layer, target: Target, params: Params) -> float:
        """Cycles of all tiles, from loads, products and unpacking a step and the epilogue."""
        geometry, form = _Geometry(layer), self._form(layer, target, params)
        tile_h, tile_w, blocks = (int(params[k]) for k in ("tile_h", "tile_w", "blocks"))
        pixels = tile_h * tile_w
        window = channel_window(layer, blocks, form.width)
        steps = geometry.kernel[0] * geometry.kernel[1] * window.length / form.width
        unpack = 1.5 * blocks if self._four_bit(layer, form) else 0.0
        latency = 5.0
        step_cost = max(pixels * blocks, latency, 2 * blocks + pixels / 2 + unpack) + 0.1 * unpack
        finish = _finish_cost(layer, blocks, form.registers - pixels * blocks)
        tile_cost = steps * step_cost + pixels * blocks * finish + 20
        tiles = -(-geometry.rows // tile_h) * -(-geometry.cols // tile_w)
        return geometry.images * tiles * (geometry.blocks // blocks) * tile_cost

    def constants(self, layer: Layer, target: Target, params: Params) -> list[np.ndarray]:
        """Packed weights, then per-channel arrays; the bias undoes a shift of the data by 128."""
        form = self._form(layer, target, params)
        packed = pack_weights(layer, int(params["blocks"]), form, self._four_bit(layer, form))
        arrays = [packed]
        for index, name, array in channel_params(layer):
            if (index, name) == (0, "bias") and _shifted(layer, form):
                weight = layer.ops[0].params["weight"]
                sums = weight.reshape(weight.shape[0], -1).sum(axis=1, dtype=np.int32)
                array[: sums.size] -= 128 * sums
            arrays.append(array)
        return arrays

    def executes_as(self, layer: Layer, target: Target, params: Params) -> str:
        """Operand types and dot-product form, such as ``u8s8 vnni512``."""
        data = "s8" if layer.data.range is not None and layer.data.range.signed else "u8"
        form = self._form(layer, target, params)
        packed = self._four_bit(layer, form)
        note = " (4-bit weights unpacked in registers)" if packed else ""
        return f"{data}s8 {form.name}{note}"

    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> tirx.PrimFunc:
        """The tiled loop nest with its epilogue."""
        form = self._form(layer, target, params)
        emitter = _ConvEmitter(layer, form, params, self._four_bit(layer, form))
        packed = pack_weights(layer, int(params["blocks"]), form, emitter.four_bit)
        return prim_func(symbol, lambda: emitter.emit(packed))

    def _form(self, layer: Layer, target: Target, params: Params) -> DotForm:
        """The form that `params` name, else the best; no nibble trick where it could overflow."""
        assert layer.data.range is not None
        op = layer.ops[0]
        forms = {f.name: f for f in dot_forms(target, layer.data.range, op.attrs["weight_bits"])}
        form = forms[str(params.get("form", next(iter(forms))))]
        reduced = int(np.prod(op.params["weight"].shape[1:]))
        if form.nibble_scale * 8 * 255 * reduced > INT32_MAX:
            return replace(form, nibble_scale=1)
        return form

    @staticmethod
    def _four_bit(layer: Layer, form: DotForm) -> bool:
        """Packed 4-bit weights, where two steps fit into a pixel's physical channels."""
        return (
            layer.ops[0].attrs["weight_bits"] == 4
            and layer.data.layout.channels % (2 * form.width) == 0
        )

    def _blocks_share_window(self, layer: Layer, blocks: int, form: DotForm) -> bool:
        step = form.width * (2 if self._four_bit(layer, form) else 1)
        one, many = channel_window(layer, 1, step), channel_window(layer, blocks, step)
        return many.length == one.length


def _shifted(layer: Layer, form: DotForm) -> bool:
    """Whether signed data is read as unsigned, 128 higher."""
    assert layer.data.range is not None
    return layer.data.range.signed and form.unsigned_only


class _ConvEmitter:
    """Emits the loop nest of one convolution."""

    def __init__(self, layer: Layer, form: DotForm, params: Params, four_bit: bool) -> None:
        self.layer, self.form, self.four_bit = layer, form, four_bit
        self.geometry = _Geometry(layer)
        self.tile_h, self.tile_w = int(params["tile_h"]), int(params["tile_w"])
        self.blocks = int(params["blocks"])
        self.step = form.width * (2 if four_bit else 1)
        self.window = channel_window(layer, self.blocks, self.step)
        self.signed = _shifted(layer, form)

    def emit(self, weight: np.ndarray) -> None:
        kernel = Kernel(self.layer, weight)
        g = self.geometry
        row_tiles, col_tiles = -(-g.rows // self.tile_h), -(-g.cols // self.tile_w)
        kernel.fill_halos()
        with T.parallel(0, (g.blocks // self.blocks) * g.images * row_tiles) as fused:
            tile = fused // (g.images * row_tiles)
            image = fused // row_tiles % g.images
            row = _tile_start(fused % row_tiles, self.tile_h, g.rows)
            acc = T.alloc_buffer(
                (self.tile_h * self.tile_w * self.blocks * LANES,), "int32", scope="local"
            )
            with T.serial(0, col_tiles) as col_tile:
                col = _tile_start(col_tile, self.tile_w, g.cols)
                self._accumulate(kernel, acc, tile, image, row, col)
                self._finish(kernel, acc, tile, image, row, col)

    def _pixels(self) -> list[tuple[int, int]]:
        return [(y, x) for y in range(self.tile_h) for x in range(self.tile_w)]

    def _accumulate(
        self, kernel: Kernel, acc: Any, tile: Any, image: Any, row: Any, col: Any
    ) -> None:
        g = self.geometry
        for i in range(self.tile_h * self.tile_w * self.blocks):
            channel = (tile * self.blocks + i % self.blocks) * LANES
            # Accumulators of nibbles are too large by a factor that the bias is not.
            start = lanes.splat(0, "int32") if self.four_bit else kernel.param(0, "bias", channel)
            lanes.store(acc, [i * LANES], start)
        steps = self.window.length // self.step
        with T.grid(g.kernel[0], g.kernel[1], steps) as (r, s, k):
            place = ((tile * g.kernel[0] + r) * g.kernel[1] + s) * steps + k
            for half, weights in enumerate(self._weights(kernel, place)):
                channel = self.window.start(tile) + k * self.step + half * self.form.width
                for p, (y, x) in enumerate(self._pixels()):
                    n, h, w = g.source(image, row + y, col + x, r, s)
                    index = kernel.pixel(self.layer.ops[0].refs[0][1], n, h, w, channel)
                    data = T.Bind(self.form.broadcast(self._data(kernel), index, self.signed))
                    for b, weight in enumerate(weights):
                        at = [(p * self.blocks + b) * LANES]
                        lanes.store(
                            acc, at, self.form.accumulate(lanes.load(acc, at), data, weight)
                        )

    def _data(self, kernel: Kernel) -> Any:
        return kernel.inputs[self.layer.ops[0].refs[0][1]]

    def _weights(self, kernel: Kernel, place: Any) -> list[list[Any]]:
        """Weight vectors of one place in the packed array: one list a step, one vector a block."""
        size = self.form.vector_bytes
        out: list[list[Any]] = [[], []] if self.four_bit else [[]]
        for b in range(self.blocks):
            base = place * self.blocks + b
            if not self.four_bit:
                out[0].append(T.Bind(lanes.load(kernel.weight, [base * size], size)))
                continue
            words = lanes.load(kernel.weight, [base * (size // 4)], size // 4)
            low, high = self.form.unpack(T.Bind(tirx.reinterpret(f"int8x{size}", words)))
            out[0].append(T.Bind(low))
            out[1].append(T.Bind(high))
        return out

    def _finish(self, kernel: Kernel, acc: Any, tile: Any, image: Any, row: Any, col: Any) -> None:
        scale_bits = 4 if self.four_bit and self.form.nibble_scale == 16 else 0
        for b in range(self.blocks):
            channel = (tile * self.blocks + b) * LANES
            for p, (y, x) in enumerate(self._pixels()):
                total = lanes.load(acc, [(p * self.blocks + b) * LANES])
                if scale_bits:
                    total = total >> lanes.splat(scale_bits, "int32")
                if self.four_bit:
                    total = total + kernel.param(0, "bias", channel)
                value = T.Bind(total)
                n, h, w = self.geometry.output(image, row + y, col + x)
                kernel.finish(value, n, h, w, channel)


def _tile_start(index: Any, size: int, extent: int) -> Any:
    """First position of a tile; the last is moved back where `size` does not divide `extent`."""
    if extent % size == 0:
        return index * size
    return tirx.min(index * size, extent - size)
