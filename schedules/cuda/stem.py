"""The first convolution with the max-pools that read it, in one kernel.

A block makes a rectangle of pooled pixels: it convolves the region that their windows cover
(neighbours repeat its border), leaves the requantized values in shared memory and pools them there,
so that the widest tensor of the network never reaches memory. Pixels of the region that lie outside
the convolution's output repeat the nearest one inside, which is in the same windows: the maximum is
that of the padded window.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from tvm.target import Target

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cuda import words
from tvm_q4.schedules.cuda.conv2d import TensorCoreConv2d, form_of, param_channels
from tvm_q4.schedules.cuda.conv_shape import ConvShape
from tvm_q4.schedules.cuda.cost import predict_memory_us, predict_us
from tvm_q4.schedules.cuda.device import device_of, family_of
from tvm_q4.schedules.cuda.kernel import GROUP, CudaKernel, Row, constants, cuda_func, word_index
from tvm_q4.schedules.cuda.main_loop import MainLoop, group, synchronize, threads
from tvm_q4.schedules.cuda.packing import pack_weights, packed_chunks, packed_rows
from tvm_q4.schedules.cuda.tensor_core import CHUNK_WORDS, MmaForm, WarpTile, mma_form
from tvm_q4.schedules.cuda.tile import CHUNK_BYTES, WORD_BYTES, Tile, occupancy
from tvm_q4.schedules.cuda.tile_space import gemm_shape
from tvm_q4.schedules.layer import Layer, Op, Tensor
from tvm_q4.schedules.layout import WORD_BITS, Layout, round_up
from tvm_q4.schedules.rule import Choice, Params

_REGIONS = ((7, 8), (4, 7), (3, 8), (3, 4), (2, 4), (1, 4))
"""Rows and columns of pooled pixels of a block."""

_WARP_ROWS = 32  # of the region; with 16, ptxas limits registers until one is spilled
_SLABS = (64, 32)
_MOST_THREADS = 512


class StemPool(TensorCoreConv2d):
    """conv2d, its requantizes, and a max_pool2d of each of their results."""

    name = "cuda.stem_pool"

    def applies(self, layer: Layer, target: Target) -> bool:
        """Layers that ``FuseStemPool`` made."""
        return bool(pools(layer)) and mma_form(layer, family_of(target)) is not None

    def space(self, layer: Layer, target: Target) -> list[Params]:
        """Regions, and the tiles that hold one."""
        form, device, out = form_of(layer, target), device_of(target), []
        stages = (2,) if form.family == 75 else (3, 2)
        blocks_n = 32 if layer.shape[1] <= 32 else 64
        for (ph, pw), bk, depth in product(_REGIONS, _SLABS, stages):
            params: Params = {"ph": ph, "pw": pw, "bn": blocks_n, "bk": bk, "stages": depth}
            tile = _tile(layer, params)
            staged = WORD_BYTES * sum(_words(_staged(layer, op, tile)) for op in pools(layer))
            fits = threads(tile) <= _MOST_THREADS and staged <= device.shared_per_block
            if fits and occupancy(tile, device):
                out.append(params)
        return out

    def costs(self, layer: Layer, target: Target, space: list[Params]) -> list[float]:
        """Predicted microseconds: those of a convolution that makes every region whole."""
        form, device, found = form_of(layer, target), device_of(target), []
        for params in space:
            tile = _tile(layer, params)
            shape = ConvShape(layer, tile.bn, form.channels)
            whole = gemm_shape(layer, form, shape, rows=_Grid(layer, params).blocks * tile.bm)
            found.append(predict_us(whole, tile, device).us)
        return found

    def constants(self, layer: Layer, target: Target, params: Params) -> list[np.ndarray]:
        """Packed weights, then per-channel arrays."""
        form = form_of(layer, target)
        shape = ConvShape(layer, int(params["bn"]), form.channels)
        return [pack_weights(layer, shape, form), *constants(layer, param_channels(layer))]

    def workspace(
        self, layer: Layer, target: Target, params: Params
    ) -> list[tuple[tuple[int, ...], str]]:
        """None."""
        return []

    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> tirx.PrimFunc:
        """The kernel."""
        return cuda_func(symbol, target, _Emitter(layer, form_of(layer, target), params).emit)


def pools(layer: Layer) -> list[Op]:
    """The max-pools after a convolution; empty where it has none."""
    found = [op for op in layer.ops if op.kind == "max_pool2d"]
    return found if layer.kind == "conv2d" else []


def stem_pays(layer: Layer, target: Target, choice: Choice) -> bool:
    """Whether a layer's kernel is predicted to be faster than a convolution and its pools apart.

    True for every layer that is not a convolution with pools.
    """
    if not pools(layer):
        return True
    stored = [(op.refs[0][1], _stored(layer, op)) for op in pools(layer)]
    kept = [op for op in layer.ops if op.kind != "max_pool2d"]
    alone, rule = Layer(layer.name, kept, layer.inputs, stored, layer.shape), TensorCoreConv2d()
    apart = min(rule.costs(alone, target, rule.space(alone, target)))
    device = device_of(target)
    for (_, read), (_, written) in zip(stored, layer.outputs, strict=True):
        apart += predict_memory_us(4 * _words(read), 4 * _words(written), device)
    return choice.rule.predict(layer, target, choice.params) <= apart


class _Grid:
    """Blocks of one layer, and the region of the convolution that each makes."""

    def __init__(self, layer: Layer, params: Params) -> None:
        attrs = pools(layer)[0].attrs
        self.ph, self.pw = int(params["ph"]), int(params["pw"])
        self.stride, self.padding = attrs["strides"], attrs["padding"]
        self.size = attrs["pool_size"]
        self.rows = (self.ph - 1) * self.stride[0] + self.size[0]
        self.cols = (self.pw - 1) * self.stride[1] + self.size[1]
        self.images, _, self.height, self.width = layer.outputs[0][1].shape
        self.down, self.across = -(-self.height // self.ph), -(-self.width // self.pw)

    @property
    def blocks(self) -> int:
        """Rectangles of pooled pixels."""
        return self.images * self.down * self.across


def _tile(layer: Layer, params: Params) -> Tile:
    grid, bn = _Grid(layer, params), int(params["bn"])
    bm = round_up(grid.rows * grid.cols, _WARP_ROWS)
    return Tile(bm, bn, int(params["bk"]), _WARP_ROWS, bn, int(params["stages"]))


class _Emitter:
    """Emits the kernel."""

    def __init__(self, layer: Layer, form: MmaForm, params: Params) -> None:
        self.layer, self.form = layer, form
        self.tile, self.grid = _tile(layer, params), _Grid(layer, params)
        self.shape = ConvShape(layer, self.tile.bn, form.channels)
        self.channel_blocks = -(-self.shape.out_channels // self.tile.bn)
        self.staged = [_staged(layer, op, self.tile) for op in pools(layer)]

    def emit(self) -> None:
        tile, grid = self.tile, self.grid
        packed = packed_rows(self.layer), packed_chunks(self.shape, self.form)
        kernel = CudaKernel(
            self.layer, param_channels(self.layer), packed[0] * packed[1] * CHUNK_WORDS
        )
        blocks, width = grid.blocks * self.channel_blocks, threads(tile)
        with T.launch_thread("blockIdx.x", blocks) as bx:
            with T.launch_thread("threadIdx.x", width) as tx:
                kernel.fill_halos(bx * width + tx, blocks * width)
                first_channel = T.Bind(bx % self.channel_blocks * tile.bn)
                block = T.Bind(bx // self.channel_blocks)
                image = T.Bind(block // (grid.down * grid.across))
                top = T.Bind(block // grid.across % grid.down * grid.ph)
                left = T.Bind(block % grid.across * grid.pw)
                loop = MainLoop(
                    kernel,
                    self.shape,
                    self.form,
                    tile,
                    packed,
                    lambda row: self._pixel(image, top, left, row),
                    first_channel,
                    tx,
                    sum(_words(t) for t in self.staged),
                )
                slabs = -(-self.shape.chunks * CHUNK_BYTES // tile.bk_bytes)
                sums = loop.emit(0, slabs)
                synchronize()
                self._stage(kernel, loop, sums, first_channel)
                synchronize()
                self._pool(kernel, loop, (image, top, left), first_channel, tx)

    def _pixel(self, image: Any, top: Any, left: Any, row: Any) -> tuple[Any, Any, Any]:
        """Pixel of the convolution that a row of the region stands for."""
        grid = self.grid
        y = top * grid.stride[0] - grid.padding[0] + row // grid.cols
        x = left * grid.stride[1] - grid.padding[1] + row % grid.cols
        inside_y = T.Bind(tirx.max(tirx.min(y, self.shape.oh - 1), 0))
        return image, inside_y, T.Bind(tirx.max(tirx.min(x, self.shape.ow - 1), 0))

    def _stage(self, kernel: CudaKernel, loop: MainLoop, sums: WarpTile, first: Any) -> None:
        """Requantize the region into shared memory."""
        run = group(self.tile)
        stage = _Stage(kernel, _without_pools(self.layer, self.staged), loop.shared)
        for g in range(self.tile.wn // (4 * run)):
            rows = []
            for slot in range(sums.row_slots()):
                row = T.Bind(loop.warp_row + sums.row(slot, loop.lane))
                values = [sums.value(slot, (g * run + e) // 2, e % 2) for e in range(run)]
                rows.append(Row((0, 0, row), values))
            local = T.Bind(loop.warp_channel + g * 4 * run + loop.lane % 4 * run)
            stage.at(first, local).finish(rows, T.Bind(first + local), run)

    def _pool(
        self, kernel: CudaKernel, loop: MainLoop, corner: tuple[Any, Any, Any], first: Any, tx: Any
    ) -> None:
        """Pool every staged tensor, 16 channels of a pixel at a time."""
        grid, groups, width = self.grid, self.tile.bn // GROUP, threads(self.tile)
        units = grid.ph * grid.pw * groups
        image, top, left = corner
        with T.serial(0, -(-units // width)) as i:
            unit = T.Bind(i * width + tx)
            y, x = T.Bind(unit // groups // grid.pw), T.Bind(unit // groups % grid.pw)
            local = T.Bind(unit % groups * GROUP)
            inside = tirx.all(
                unit < units,
                top + y < grid.height,
                left + x < grid.width,
                first + local < packed_rows(self.layer),
            )
            with T.If(inside), T.Then():
                for k in range(len(self.staged)):
                    values = self._maxima(loop, k, y, x, local)
                    pooled = _Pooled(kernel, k)
                    place = (image, top + y, left + x)
                    pooled.finish([Row(place, values)], T.Bind(first + local), GROUP)

    def _maxima(self, loop: MainLoop, k: int, y: Any, x: Any, local: Any) -> list[Any]:
        """Largest elements of 16 channels of a window, as int32."""
        grid, tensor = self.grid, self.staged[k]
        assert tensor.range is not None
        bits, per = tensor.layout.bits, WORD_BITS // tensor.layout.bits
        count = GROUP // per
        lanes = min(4, count)
        view = _shared_view(loop.shared, self.staged, k, lanes)
        dtype = "int32" if tensor.range.signed else "uint32"
        best = T.alloc_buffer((GROUP,), dtype, scope="local")
        for r, s in product(*map(range, grid.size)):
            row = (y * grid.stride[0] + r) * grid.cols + x * grid.stride[1] + s
            start = tirx.floordiv(word_index(tensor, (0, 0, row), local), lanes)
            found: list[Any] = []
            for v in range(count // lanes):
                vector = T.Bind(view[start + v])
                parts = [tirx.Shuffle([vector], [e]) for e in range(lanes)]
                found += [vector] if lanes == 1 else parts
            for e in range(GROUP):
                value = tirx.Cast(dtype, words.raised(found[e // per], e % per, bits))
                new = value if r == s == 0 else tirx.max(best[e], value)
                T.buffer_store(best, new, [e])
        low = tirx.const(WORD_BITS - bits, dtype)
        return [T.Bind(tirx.Cast("int32", best[e] >> low)) for e in range(GROUP)]


def _staged(layer: Layer, pool: Op, tile: Tile) -> Tensor:
    """What a pool reads, as it lies in shared memory: a row of pixels of the block's channels."""
    k = next(k for k, (i, _) in enumerate(layer.outputs) if layer.ops[i] is pool)
    out = layer.outputs[k][1]
    channels = round_up(tile.bn, 128 // out.layout.bits)
    layout = Layout("NHWC", (0, 0, 0, 0), channels, out.layout.bits)
    return Tensor(pool.name, (1, tile.bn, 1, tile.bm), out.dtype, out.range, layout)


def _stored(layer: Layer, pool: Op) -> Tensor:
    """What a pool reads where it is a kernel of its own."""
    out = next(t for i, t in layer.outputs if layer.ops[i] is pool)
    layout = Layout("NHWC", (0, 0, 0, 0), out.layout.channels, out.layout.bits)
    return Tensor(pool.name, layer.shape, out.dtype, out.range, layout)


def _words(tensor: Tensor) -> int:
    return int(np.prod(tensor.physical_shape))


def _without_pools(layer: Layer, staged: list[Tensor]) -> Layer:
    """The layer up to its pools, with staged tensors as its results."""
    kept = [op for op in layer.ops if op.kind != "max_pool2d"]
    outputs = [(op.refs[0][1], t) for op, t in zip(pools(layer), staged, strict=True)]
    return Layer(layer.name, kept, layer.inputs, outputs, layer.shape)


def _shared_view(shared: Any, staged: list[Tensor], k: int, lanes: int) -> Any:
    """Flat view of staged tensor `k` in vectors of `lanes` words."""
    first = sum(_words(t) for t in staged[:k])
    dtype = "int32" if lanes == 1 else f"int32x{lanes}"
    size = _words(staged[k]) // lanes
    return T.decl_buffer(
        (size,), dtype, data=shared.data, elem_offset=first // lanes, scope="shared.dyn"
    )


class _Stage(CudaKernel):
    """A kernel whose results go to shared memory."""

    def __init__(self, kernel: CudaKernel, layer: Layer, shared: Any) -> None:
        self.__dict__.update(kernel.__dict__)
        self.layer, self._shared = layer, shared
        self._staged = [t for _, t in layer.outputs]
        self._local: tuple[Any, Any] = (0, 0)

    def at(self, first: Any, local: Any) -> _Stage:
        """The same, storing at `local` what belongs to channel ``first + local``."""
        self._local = (first, local)
        return self

    def output(self, k: int, lanes: int = 1) -> Any:
        return _shared_view(self._shared, self._staged, k, lanes)

    def store_index(self, tensor: Tensor, place: tuple[Any, Any, Any], c0: Any) -> Any:
        return word_index(tensor, place, self._local[1])


class _Pooled(CudaKernel):
    """The last step of a kernel: pooled values to one of its outputs."""

    def __init__(self, kernel: CudaKernel, k: int) -> None:
        self.__dict__.update(kernel.__dict__)
        index, tensor = kernel.layer.outputs[k]
        pool = kernel.layer.ops[index]
        self.layer = Layer(pool.name, [pool], [], [(0, tensor)], tensor.shape)
        self._outputs, self._params = [self._outputs[k]], {}
