"""The main loop of a tensor-core kernel: slabs of both operands through shared memory.

From sm_80 on slabs arrive by ``cp.async`` in a ring of `stages` buffers; sm_75 has no such copy, so
the next slab is loaded to registers while the current one is multiplied, and two buffers alternate.
Chunks of 16 bytes are swizzled (xor with the row), which keeps copies and ``ldmatrix`` free of bank
conflicts. Rows of weights are permuted so that a lane's sums are consecutive channels: the epilogue
then needs no exchange between threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_q4._compat import T, ptx, tirx
from tvm_q4.schedules.cuda.conv_shape import ConvShape
from tvm_q4.schedules.cuda.kernel import GROUP, CudaKernel
from tvm_q4.schedules.cuda.tensor_core import CHUNK_WORDS, MmaForm, WarpTile
from tvm_q4.schedules.cuda.tile import CHUNK_BYTES, WARP, WORD_BYTES, Tile


def threads(tile: Tile) -> int:
    """Threads of a block."""
    return WARP * tile.warps


def group(tile: Tile) -> int:
    """Consecutive channels that a lane holds."""
    return min(GROUP, tile.wn // 4)


def shared_words(tile: Tile, form: MmaForm) -> int:
    """int32 words of shared memory."""
    rows = tile.bm + tile.bn * form.products
    return tile.stages * rows * tile.bk_bytes // WORD_BYTES


def swizzle(row: Any, chunk: Any, chunks: int) -> Any:
    """Where a chunk of a row of `chunks` chunks lies: eight rows of one chunk hit all banks."""
    if chunks >= 8:
        return chunk ^ (row % 8)
    return chunk ^ (row // (8 // chunks) % chunks)


def channel_of(row: Any, tile: Tile) -> Any:
    """Output channel, within a block, of a row of weights in shared memory.

    Sums of lane ``4 * g + t`` lie in columns ``8 * j + 2 * t + i`` of its warp: they become
    channels ``t * group + 2 * j + i``.
    """
    run = group(tile)
    tiles = run // 2
    warp, within = row // tile.wn * tile.wn, row % tile.wn
    j, t, i = within // 8, within % 8 // 2, within % 2
    return warp + j // tiles * (4 * run) + t * run + j % tiles * 2 + i


class MainLoop:
    """Emits the sums of one block; make it inside the launch.

    Parameters
    ----------
    kernel : CudaKernel
    shape : ConvShape
    form : MmaForm
    tile : Tile
    packed : (int, int)
        Rows and chunks a row of the packed weights.
    pixel : callable
        Place (n, h, w) of the output pixel that a row of the block stands for; always inside.
    first_channel : expression
        First output channel of the block.
    thread : expression
        Index of the thread in the block.
    least_words : int
        Shared memory that the block needs afterwards, in words.
    """

    def __init__(
        self,
        kernel: CudaKernel,
        shape: ConvShape,
        form: MmaForm,
        tile: Tile,
        packed: tuple[int, int],
        pixel: Callable[[Any], tuple[Any, Any, Any]],
        first_channel: Any,
        thread: Any,
        least_words: int = 0,
    ) -> None:
        self.shape, self.form, self.tile, self.packed = shape, form, tile, packed
        self.kernel, self.thread = kernel, thread
        self.source = kernel.layer.ops[0].refs[0][1]
        self.threads = threads(tile)
        self.a_chunks = tile.bk_bytes // CHUNK_BYTES
        self.b_chunks = self.a_chunks * form.products
        self.a_words = tile.bm * self.a_chunks * CHUNK_WORDS
        self.b_words = tile.bn * self.b_chunks * CHUNK_WORDS
        words = max(shared_words(tile, form), least_words)
        self.shared = T.alloc_buffer((words,), "int32", scope="shared.dyn")
        warps_m = tile.bm // tile.wm
        self.lane, warp = T.Bind(thread % 32), T.Bind(thread // 32)
        self.warp_row = T.Bind(warp % warps_m * tile.wm)
        self.warp_channel = T.Bind(warp // warps_m * tile.wn)
        self.warp = WarpTile(form, tile.wm, tile.wn)
        self.a_base = self._a_bases(pixel, first_channel)
        self.b_base = self._b_bases(first_channel)

    def emit(self, first: Any, count: Any) -> WarpTile:
        """Sum `count` slabs from `first` on."""
        self.warp.clear()
        if self.form.family == 75:
            self._through_registers(first, count)
        else:
            self._asynchronous(first, count)
        return self.warp

    def _copies(self, rows: int, chunks: int) -> int:
        return -(-rows * chunks // self.threads)

    def _row_chunk(self, v: int, chunks: int) -> tuple[Any, Any]:
        """Row and chunk that this thread moves in its copy `v` of a slab."""
        index = self.thread + v * self.threads
        return index // chunks, index % chunks

    def _each(self, rows: int, chunks: int, emit: Any) -> None:
        """Emit a thread's copies of a slab, leaving out those beyond it."""
        for v in range(self._copies(rows, chunks)):
            if (v + 1) * self.threads <= rows * chunks:
                emit(v)
            else:
                with T.If(self.thread + v * self.threads < rows * chunks), T.Then():
                    emit(v)

    def _a_bases(self, pixel: Callable[[Any], Any], first_channel: Any) -> Any:
        """First word of the window of every row that this thread copies."""
        count = self._copies(self.tile.bm, self.a_chunks)
        out = T.alloc_buffer((count,), "int32", scope="local")
        for v in range(count):
            row, _ = self._row_chunk(v, self.a_chunks)
            T.buffer_store(out, self.shape.base(pixel(row), first_channel), [v])
        return out

    def _b_bases(self, first_channel: Any) -> Any:
        """First chunk of every row of weights that this thread copies."""
        rows, chunks = self.packed
        count = self._copies(self.tile.bn, self.b_chunks)
        out = T.alloc_buffer((count,), "int32", scope="local")
        for v in range(count):
            row, chunk = self._row_chunk(v, self.b_chunks)
            channel = tirx.min(first_channel + channel_of(row, self.tile), rows - 1)
            T.buffer_store(out, channel * chunks + chunk, [v])
        return out

    def _a_target(self, v: int, stage: Any) -> Any:
        row, chunk = self._row_chunk(v, self.a_chunks)
        place = row * self.a_chunks + swizzle(row, chunk, self.a_chunks)
        return stage * self.a_words + place * CHUNK_WORDS

    def _b_target(self, v: int, stage: Any) -> Any:
        row, chunk = self._row_chunk(v, self.b_chunks)
        place = row * self.b_chunks + swizzle(row, chunk, self.b_chunks)
        return self.tile.stages * self.a_words + stage * self.b_words + place * CHUNK_WORDS

    def _a_offset(self, slab: Any) -> Any:
        """Words from a window's beginning to this thread's chunk: one for all of its copies."""
        return self.shape.offset(slab, self.thread % self.a_chunks, self.a_chunks)

    def _multiply(self, stage: Any) -> None:
        def a_pointer(row: Any, chunk: Any) -> Any:
            r = self.warp_row + row
            place = r * self.a_chunks + swizzle(r, chunk, self.a_chunks)
            return self.shared.ptr_to([stage * self.a_words + place * CHUNK_WORDS])

        start = self.tile.stages * self.a_words

        def b_pointer(row: Any, chunk: Any) -> Any:
            r = self.warp_channel + row
            place = r * self.b_chunks + swizzle(r, chunk, self.b_chunks)
            return self.shared.ptr_to([start + stage * self.b_words + place * CHUNK_WORDS])

        for k in range(self.a_chunks // self.form.step_chunks):
            self.warp.step(k, a_pointer, b_pointer, self.lane)

    def _copy_async(self, slab: Any, stage: Any) -> None:
        data, weight = self.kernel.input(self.source), self.kernel.weight()
        size = self.shape.granule()
        offset = self._a_offset(slab)

        def copy_a(v: int) -> None:
            for part in range(0, CHUNK_BYTES, size):
                target = self.shared.ptr_to([self._a_target(v, stage) + part // 4])
                _cp_async(target, data.ptr_to([self.a_base[v] + offset + part // 4]), size)

        def copy_b(v: int) -> None:
            chunk = self.b_base[v] + slab * self.b_chunks
            target = self.shared.ptr_to([self._b_target(v, stage)])
            _cp_async(target, weight.ptr_to([chunk * CHUNK_WORDS]), CHUNK_BYTES)

        self._each(self.tile.bm, self.a_chunks, copy_a)
        self._each(self.tile.bn, self.b_chunks, copy_b)

    def _asynchronous(self, first: Any, count: Any) -> None:
        stages = self.tile.stages
        for s in range(stages - 1):
            with T.If(s < count), T.Then():
                self._copy_async(first + s, s)
            T.evaluate(ptx["cp.async.commit_group"]())
        with T.serial(0, count) as i:
            T.evaluate(ptx["cp.async.wait_group"](stages - 2))
            synchronize()
            ahead = T.Bind(i + (stages - 1))
            with T.If(ahead < count), T.Then():
                self._copy_async(first + ahead, ahead % stages)
            T.evaluate(ptx["cp.async.commit_group"]())
            self._multiply(i % stages)

    def _through_registers(self, first: Any, count: Any) -> None:
        a = T.alloc_buffer((self._copies(self.tile.bm, self.a_chunks),), "int32x4", scope="local")
        b = T.alloc_buffer((self._copies(self.tile.bn, self.b_chunks),), "int32x4", scope="local")
        self._load(first, a, b)
        self._store(0, a, b)
        synchronize()
        with T.serial(0, count) as i:
            with T.If(i + 1 < count), T.Then():
                self._load(first + i + 1, a, b)
            self._multiply(i % 2)
            with T.If(i + 1 < count), T.Then():
                self._store((i + 1) % 2, a, b)
            synchronize()

    def _load(self, slab: Any, a: Any, b: Any) -> None:
        offset = self._a_offset(slab)
        lanes = self.shape.granule() // 4
        data, weight = self.kernel.input(self.source, lanes), self.kernel.weight(CHUNK_WORDS)

        def load_a(v: int) -> None:
            at = tirx.floordiv(self.a_base[v] + offset, lanes)
            parts = [data[at + p] for p in range(CHUNK_WORDS // lanes)]
            T.buffer_store(a, _joined(parts, lanes), [v])

        def load_b(v: int) -> None:
            T.buffer_store(b, weight[self.b_base[v] + slab * self.b_chunks], [v])

        self._each(self.tile.bm, self.a_chunks, load_a)
        self._each(self.tile.bn, self.b_chunks, load_b)

    def _store(self, stage: Any, a: Any, b: Any) -> None:
        size = int(self.shared.shape[0]) // CHUNK_WORDS
        shared = T.decl_buffer((size,), "int32x4", data=self.shared.data, scope="shared.dyn")

        def store_a(v: int) -> None:
            T.buffer_store(shared, a[v], [tirx.floordiv(self._a_target(v, stage), CHUNK_WORDS)])

        def store_b(v: int) -> None:
            T.buffer_store(shared, b[v], [tirx.floordiv(self._b_target(v, stage), CHUNK_WORDS)])

        self._each(self.tile.bm, self.a_chunks, store_a)
        self._each(self.tile.bn, self.b_chunks, store_b)


def _joined(parts: list[Any], lanes: int) -> Any:
    """Parts of a chunk as one vector."""
    if len(parts) == 1:
        return parts[0]
    bound = [T.Bind(p) for p in parts]
    if lanes == 1:
        return tirx.Shuffle(bound, list(range(CHUNK_WORDS)))
    words = [tirx.Shuffle([p], [e]) for p in bound for e in range(lanes)]
    return tirx.Shuffle(words, list(range(CHUNK_WORDS)))


def _cp_async(target: Any, source: Any, size: int) -> None:
    cache = "cg" if size == CHUNK_BYTES else "ca"
    T.evaluate(ptx[f"cp.async.{cache}.shared.global"](target, source, size))


def synchronize() -> None:
    """Wait for all threads of the block."""
    T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))
