"""Small kernels in the form that our schedules generate, to test the emulator with.

`gemm` multiplies A[32, K] by B[32, K] transposed, both packed into int32 words with k contiguous,
in one block of two warps. It goes through shared memory in slabs of 32 bytes a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as dialect
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

ROWS = 32
SLAB = 8  # int32 words of a row in one stage of shared memory
THREADS = 64
PTX = dialect.ptx


@dataclass(frozen=True)
class Mma:
    """A tensor-core instruction: its tile, and the types of A and B."""

    m: int
    k: int
    a_type: str
    b_type: str

    @property
    def bits(self) -> int:
        """Bits of an element of A and B."""
        return int(self.b_type.lstrip("uint"))

    @property
    def opcode(self) -> str:
        """PTX name of the instruction."""
        a, b = (t.replace("uint", "u").replace("int", "s") for t in (self.a_type, self.b_type))
        return f"mma.sync.aligned.m{self.m}n8k{self.k}.row.col.s32.{a}.{b}.s32"

    @property
    def words(self) -> int:
        """int32 words of k in one instruction."""
        return self.k * self.bits // 32


def vector(start: Any, lanes: int = 4) -> Any:
    """Indices of a vector access."""
    return tirx.Ramp(start, 1, lanes)


def copy(target: Any, at: list[Any], source: Any, start: list[Any], lanes: int = 4) -> None:
    """Copy `lanes` consecutive elements."""
    T.buffer_store(
        target, source[(*start[:-1], vector(start[-1], lanes))], [*at[:-1], vector(at[-1], lanes)]
    )


def barrier() -> None:
    """Emit ``__syncthreads()``."""
    T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))


@contextmanager
def function(name: str) -> Iterator[None]:
    """Build inside a scheduled function."""
    with T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        yield


class Gemm:
    """Emits the parts of the kernel `gemm`."""

    def __init__(self, mma: Mma, slabs: int, stages: int, fragments: str) -> None:
        self.mma, self.slabs, self.fragments = mma, slabs, fragments
        words = SLAB * slabs
        self.a, self.b = (T.arg(n, T.buffer((ROWS, words), "int32")) for n in ("A", "B"))
        self.c = T.arg("C", T.buffer((ROWS, ROWS), "int32"))
        self.stages = stages

    def allocate(self, tx: Any) -> None:
        """Shared memory, fragments, and zero accumulators."""
        mma = self.mma
        self.tx, self.lane, self.warp = tx, tx % 32, tx // 32
        self.shared = [
            T.alloc_buffer((self.stages, ROWS, SLAB), "int32", scope="shared") for _ in "ab"
        ]
        self.a_regs = T.alloc_buffer((mma.m // 8 * mma.words // 4,), "uint32", scope="local")
        self.b_regs = T.alloc_buffer((mma.words // 4,), "uint32", scope="local")
        self.staged = T.alloc_buffer((8,), "int32", scope="local")
        self.acc = T.alloc_buffer((16 // mma.m, 4, mma.m // 4), "uint32", scope="local")
        for i in range(16 // mma.m):
            for j in range(4):
                for r in range(mma.m // 4):
                    T.buffer_store(self.acc, tirx.const(0, "uint32"), [i, j, r])

    def word(self, row: Any, half: Any) -> Any:
        """First word of a row's 16-byte half, swizzled so that eight rows use all banks."""
        return (half ^ ((row // 4) % 2)) * 4

    def load(self, slab: Any) -> None:
        """Bring this thread's 16 bytes of A and B of a slab into registers."""
        row, half = self.tx // 2, self.tx % 2
        for i, source in enumerate((self.a, self.b)):
            copy(self.staged, [4 * i], source, [row, slab * SLAB + half * 4])

    def put(self, stage: Any) -> None:
        """Store the registers into a stage of shared memory."""
        row, half = self.tx // 2, self.tx % 2
        for i, target in enumerate(self.shared):
            copy(target, [stage, row, self.word(row, half)], self.staged, [4 * i])

    def start_copy(self, stage: Any, slab: Any) -> None:
        """Start the asynchronous copy of a slab."""
        row, half = self.tx // 2, self.tx % 2
        for source, target in zip((self.a, self.b), self.shared, strict=True):
            at = target.ptr_to([stage, row, self.word(row, half)])
            T.evaluate(
                PTX["cp.async.cg.shared.global"](
                    at, source.ptr_to([row, slab * SLAB + half * 4]), 16
                )
            )

    def read_a(self, stage: Any, tile: int, step: int) -> None:
        """Load a fragment of A."""
        m, words = self.mma.m, self.mma.words
        first = self.warp * 16 + tile * m
        if self.fragments == "ldmatrix":
            row, half = first + self.lane % 16, self.lane // 16
            regs = [self.a_regs[i] for i in range(4)]
            address = self.shared[0].ptr_to([stage, row, self.word(row, half)])
            T.evaluate(PTX["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](*regs, address))
            return
        for r in range(m // 8 * words // 4):
            row, half = first + self.lane // 4 + 8 * (r % (m // 8)), step + r // (m // 8)
            value = self.shared[0][stage, row, self.word(row, half) + self.lane % 4]
            T.buffer_store(self.a_regs, tirx.Cast("uint32", value), [r])

    def read_b(self, stage: Any, tile: int, step: int) -> None:
        """Load a fragment of B."""
        if self.fragments == "ldmatrix":
            row, half = tile * 8 + self.lane % 8, (self.lane // 8) % 2
            regs = [self.b_regs[i] for i in range(2)]
            address = self.shared[1].ptr_to([stage, row, self.word(row, half)])
            T.evaluate(PTX["ldmatrix.sync.aligned.m8n8.x2.shared.b16"](*regs, address))
            return
        for r in range(self.mma.words // 4):
            row, half = tile * 8 + self.lane // 4, step + r
            value = self.shared[1][stage, row, self.word(row, half) + self.lane % 4]
            T.buffer_store(self.b_regs, tirx.Cast("uint32", value), [r])

    def multiply(self, stage: Any) -> None:
        """Accumulate one stage."""
        mma = self.mma
        for step in range(SLAB // mma.words):
            for i in range(16 // mma.m):
                self.read_a(stage, i, step)
                for j in range(4):
                    self.read_b(stage, j, step)
                    acc = [self.acc[i, j, r] for r in range(mma.m // 4)]
                    a = [self.a_regs[r] for r in range(mma.m // 8 * mma.words // 4)]
                    b = [self.b_regs[r] for r in range(mma.words // 4)]
                    T.evaluate(PTX[mma.opcode](*acc, *a, *b, *acc))

    def finish(self) -> None:
        """Store the accumulators."""
        for i in range(16 // self.mma.m):
            for j in range(4):
                for r in range(self.mma.m // 4):
                    row = self.warp * 16 + i * self.mma.m + self.lane // 4 + 8 * (r // 2)
                    column = j * 8 + (self.lane % 4) * 2 + r % 2
                    T.buffer_store(self.c, tirx.Cast("int32", self.acc[i, j, r]), [row, column])


def _through_shared(g: Gemm) -> None:
    with T.serial(0, g.slabs) as slab:
        g.load(slab)
        g.put(0)
        barrier()
        g.multiply(0)
        barrier()


def _double_buffered(g: Gemm) -> None:
    g.load(0)
    g.put(0)
    barrier()
    with T.serial(0, g.slabs - 1) as slab:
        g.load(slab + 1)
        g.multiply(slab % 2)
        g.put((slab + 1) % 2)
        barrier()
    g.multiply((g.slabs - 1) % 2)


def _asynchronous(g: Gemm) -> None:
    def commit() -> None:
        T.evaluate(PTX["cp.async.commit_group"]())

    for stage in range(g.stages - 1):
        g.start_copy(stage, stage)
        commit()
    with T.serial(0, g.slabs) as slab:
        T.evaluate(PTX["cp.async.wait_group"](g.stages - 2))
        barrier()
        g.multiply(slab % g.stages)
        ahead = slab + g.stages - 1
        with T.If(ahead < g.slabs), T.Then():
            g.start_copy(ahead % g.stages, ahead)
        commit()


_STAGING: dict[str, tuple[int, Callable[[Gemm], None]]] = {
    "shared": (1, _through_shared),
    "registers": (2, _double_buffered),
    "cp.async": (3, _asynchronous),
}


def gemm(mma: Mma, staging: str, fragments: str, slabs: int = 4) -> PrimFunc:
    """C = A x B^T.

    Parameters
    ----------
    mma : Mma
        Instruction.
    staging : {"shared", "registers", "cp.async"}
        How slabs come to shared memory: one buffer between two barriers; two buffers with the
        next slab in registers; three stages of asynchronous copies.
    fragments : {"ldmatrix", "loads"}
        How fragments come to registers; ldmatrix is for m16n8 with 32 bytes of k.
    slabs : int
        k in units of 32 bytes.
    """
    stages, emit = _STAGING[staging]
    with IRBuilder() as builder, function("gemm"):
        g = Gemm(mma, slabs, stages, fragments)
        with T.launch_thread("blockIdx.x", 1), T.launch_thread("threadIdx.x", THREADS) as tx:
            g.allocate(tx)
            emit(g)
            g.finish()
    return builder.get().with_attr("global_symbol", "gemm")
