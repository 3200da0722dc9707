"""Maximum and average pooling on CUDA, 16 channels a thread, with a fused epilogue.

A window of a few positions is read by one thread. The threads of a block share larger windows (the
global pool of a classifier at batch 1 would keep 128 threads busy else): 32 threads read every 32nd
position each, and their results meet in shared memory.
"""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules import windows
from tvm_q4.schedules.cuda import words
from tvm_q4.schedules.cuda.kernel import GROUP, CudaKernel, Row, padded_channels
from tvm_q4.schedules.cuda.main_loop import synchronize
from tvm_q4.schedules.cuda.single_setting import THREADS, SingleSetting, launch
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import WORD_BITS

LARGE = 16
"""Least positions of a window that a block's threads share."""

_SLICES = 32  # threads that share a window
_UNITS = THREADS // _SLICES  # results of a block: 16 channels of a pixel each
_STRIDE = THREADS + _UNITS  # of a channel's words in shared memory: no bank conflicts


class _Maximum:
    """Largest elements, compared in the highest bits of words: one shift an element, no masks."""

    def __init__(self, layer: Layer) -> None:
        assert layer.data.range is not None
        self.bits = layer.data.layout.bits
        self.dtype = "int32" if layer.data.range.signed else "uint32"
        self.start = tirx.min_value(self.dtype)

    def read(self, kernel: CudaKernel, i: int, place: tuple[Any, Any, Any], c0: Any) -> list[Any]:
        """What the channels of one pixel of input `i` contribute."""
        per = WORD_BITS // self.bits
        found = kernel.load_words(i, place, c0, GROUP)
        elements = [words.raised(found[e // per], e % per, self.bits) for e in range(GROUP)]
        return [tirx.Cast(self.dtype, element) for element in elements]

    def two(self, a: Any, b: Any) -> Any:
        return tirx.max(a, b)

    def result(self, value: Any, place: tuple[Any, Any, Any]) -> Any:
        """The anchor's value as int32."""
        low = WORD_BITS - self.bits
        return tirx.Cast("int32", value >> tirx.const(low, self.dtype) if low else value)


class _Sum:
    """Sums of elements less the zero point, and their means."""

    dtype = "int32"

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.start = tirx.const(0, "int32")

    def read(self, kernel: CudaKernel, i: int, place: tuple[Any, Any, Any], c0: Any) -> list[Any]:
        """What the channels of one pixel of input `i` contribute."""
        zero = tirx.const(self.layer.ops[0].attrs["zero_point"], "int32")
        return [element - zero for element in kernel.load(i, place, c0, GROUP)]

    def two(self, a: Any, b: Any) -> Any:
        return a + b

    def result(self, value: Any, place: tuple[Any, Any, Any]) -> Any:
        """The anchor's value as int32."""
        if self.layer.ops[0].attrs["rounding"] == "sum":
            return value
        return windows.mean(self.layer, value, place[1], place[2], width=1)


class Pool2d(SingleSetting):
    """max_pool2d and avg_pool2d: padding is skipped by a test of each window position."""

    name = "cuda.pool2d"
    kinds = ("max_pool2d", "avg_pool2d")

    def emit(self, kernel: CudaKernel) -> None:
        height, width = kernel.layer.ops[0].attrs["pool_size"]
        pool = _Pool(kernel)
        if height * width >= LARGE:
            pool.shared()
        else:
            launch(kernel, pool.total, pool.alone)


class _Pool:
    """Emits a pool; a unit of its work is 16 channels of an output pixel."""

    def __init__(self, kernel: CudaKernel) -> None:
        self.kernel, self.layer = kernel, kernel.layer
        self.groups = padded_channels(self.layer) // GROUP
        n, _, h, w = self.layer.shape
        self.total = n * h * w * self.groups
        self.combine = (_Maximum if self.layer.kind == "max_pool2d" else _Sum)(self.layer)

    def alone(self, unit: Any) -> None:
        """The work of a thread that reads a whole window."""
        sums = self._start()
        place, c0 = self._place(unit)
        with T.grid(*self.layer.ops[0].attrs["pool_size"]) as (r, s):
            self._take(sums, place, c0, r, s)
        self._finish(place, c0, [sums[e] for e in range(GROUP)])

    def shared(self) -> None:
        """The whole grid, where the threads of a block share windows."""
        blocks = -(-self.total // _UNITS)
        with T.launch_thread("blockIdx.x", blocks) as bx:
            with T.launch_thread("threadIdx.x", THREADS) as tx:
                self.kernel.fill_halos(bx * THREADS + tx, blocks * THREADS)
                parts = T.alloc_buffer((GROUP * _STRIDE,), self.combine.dtype, scope="shared")
                wholes = T.alloc_buffer((GROUP * _UNITS,), self.combine.dtype, scope="shared")
                self._store_part(parts, bx * _UNITS + tx % _UNITS, tx)
                synchronize()
                with T.If(tx < GROUP * _UNITS), T.Then():
                    self._add_parts(parts, wholes, tx)
                synchronize()
                unit = bx * _UNITS + tx
                with T.If(tirx.all(tx < _UNITS, unit < self.total)), T.Then():
                    place, c0 = self._place(unit)
                    values = [T.Bind(wholes[e * _UNITS + tx]) for e in range(GROUP)]
                    self._finish(place, c0, values)

    def _store_part(self, parts: Any, unit: Any, thread: Any) -> None:
        height, width = self.layer.ops[0].attrs["pool_size"]
        place, c0 = self._place(tirx.min(unit, self.total - 1))
        sums = self._start()
        with T.serial(0, -(-height * width // _SLICES)) as i:
            position = T.Bind(i * _SLICES + thread // _UNITS)
            with T.If(position < height * width), T.Then():
                self._take(sums, place, c0, position // width, position % width)
        for e in range(GROUP):
            T.buffer_store(parts, sums[e], [e * _STRIDE + thread])

    def _add_parts(self, parts: Any, wholes: Any, thread: Any) -> None:
        """Combine one channel of one unit over the threads that share its window."""
        at = T.Bind(thread // _UNITS * _STRIDE + thread % _UNITS)
        whole = T.alloc_buffer((1,), self.combine.dtype, scope="local")
        T.buffer_store(whole, parts[at], [0])
        with T.serial(1, _SLICES) as part:
            T.buffer_store(whole, self.combine.two(whole[0], parts[at + part * _UNITS]), [0])
        T.buffer_store(wholes, whole[0], [thread])

    def _start(self) -> Any:
        sums = T.alloc_buffer((GROUP,), self.combine.dtype, scope="local")
        for e in range(GROUP):
            T.buffer_store(sums, self.combine.start, [e])
        return sums

    def _place(self, unit: Any) -> tuple[tuple[Any, Any, Any], Any]:
        _, _, h, w = self.layer.shape
        pixel = T.Bind(unit // self.groups)
        return (pixel // (h * w), pixel // w % h, pixel % w), T.Bind(unit % self.groups * GROUP)

    def _take(self, sums: Any, place: tuple[Any, Any, Any], c0: Any, r: Any, s: Any) -> None:
        """Combine one position of a window, if it is inside, with what was read before."""
        data = self.layer.ops[0].refs[0][1]
        y, x, inside = windows.source(self.layer, place[1], place[2], r, s)
        with T.If(inside), T.Then():
            for e, value in enumerate(self.combine.read(self.kernel, data, (place[0], y, x), c0)):
                T.buffer_store(sums, self.combine.two(sums[e], value), [e])

    def _finish(self, place: tuple[Any, Any, Any], c0: Any, sums: list[Any]) -> None:
        values = [T.Bind(self.combine.result(v, place)) for v in sums]
        self.kernel.finish([Row(place, values)], c0, GROUP)
