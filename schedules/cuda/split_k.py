"""Split-K: partial sums in scratch memory, and the kernel that adds them.

Two kernels in one function: blocks that wait for each other would need flags in memory, and integer
addition gives the same sum in any order.
"""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cuda.conv_shape import ConvShape
from tvm_q4.schedules.cuda.kernel import CudaKernel, Row
from tvm_q4.schedules.cuda.main_loop import group
from tvm_q4.schedules.cuda.tensor_core import WarpTile
from tvm_q4.schedules.cuda.tile import Tile
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES, round_up

THREADS = 128
_RUN = 8  # channels that a thread of the second kernel finishes


def scratch_shape(layer: Layer, tile: Tile) -> tuple[int, ...]:
    """Parts, pixels, channels."""
    n, channels, h, w = layer.shape
    return tile.split_k, n * h * w, round_up(channels, LANES)


def store_parts(
    kernel: CudaKernel, shape: ConvShape, tile: Tile, sums: WarpTile, place: Any, part: Any
) -> None:
    """Write a block's sums into its part of the scratch memory."""
    _, rows, channels = scratch_shape(kernel.layer, tile)
    scratch, run = kernel.scratch(4), group(tile)
    for g in range(tile.wn // (4 * run)):
        channel = place.channel(g, run)
        for slot in range(sums.row_slots()):
            row = T.Bind(place.row(sums, slot))
            with T.If(tirx.all(row < rows, channel < channels)), T.Then():
                at = tirx.floordiv((part * rows + row) * channels + channel, 4)
                for q in range(0, run, 4):
                    values = [sums.value(slot, (g * run + q + e) // 2, e % 2) for e in range(4)]
                    T.buffer_store(scratch, tirx.Shuffle(values, [0, 1, 2, 3]), [at + q // 4])


def emit_reduction(kernel: CudaKernel, shape: ConvShape, tile: Tile) -> None:
    """The second kernel: add the parts and run the epilogue, `_RUN` channels a thread."""
    parts, rows, channels = scratch_shape(kernel.layer, tile)
    runs = channels // _RUN
    total = rows * runs
    blocks = -(-total // THREADS)
    with T.launch_thread("blockIdx.x", blocks) as bx:
        with T.launch_thread("threadIdx.x", THREADS) as tx:
            thread = T.Bind(bx * THREADS + tx)
            kernel.fill_halos(thread, blocks * THREADS)
            with T.If(thread < total), T.Then():
                row, c0 = T.Bind(thread // runs), T.Bind(thread % runs * _RUN)
                values = _added(kernel, parts, rows * channels, row * channels + c0)
                kernel.finish([Row(shape.place(row), values)], c0, _RUN)


def _added(kernel: CudaKernel, parts: int, part_size: int, start: Any) -> list[Any]:
    """Sums of `_RUN` channels over all parts."""
    scratch = kernel.scratch(4)
    out = T.alloc_buffer((_RUN,), "int32", scope="local")
    for e in range(_RUN):
        T.buffer_store(out, tirx.const(0, "int32"), [e])
    with T.serial(0, parts) as part:
        for q in range(0, _RUN, 4):
            vector = T.Bind(scratch[tirx.floordiv(part * part_size + start, 4) + q // 4])
            for e in range(4):
                T.buffer_store(out, out[q + e] + tirx.Shuffle([vector], [e]), [q + e])
    return [out[e] for e in range(_RUN)]
