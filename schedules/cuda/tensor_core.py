"""Tensor-core instructions by family, and the emission of one step along k.

In bytes all shapes of PTX's ``mma`` are one pattern: a register of lane ``4 * g + t`` holds the
four bytes ``4t .. 4t + 3`` of row ``g``, which is what ``ldmatrix`` hands out. On sm_75 a step
takes 16 bytes of k (m8n8k16 or m8n8k32), from sm_80 on 32 bytes (m16n8k32 or m16n8k64).

Where int8 products meet 4-bit activations (no int4 tensor cores from sm_90 on, or 8-bit weights),
activations stay packed in memory and are widened in registers: two logic instructions a register
give its even and its odd channels, and weights are packed in that order. Signed ones come out 16
times too large, so that no sign has to be extended; the sum is shifted back. (Performance notes,
section 1, "Widening on Hopper"; Hu et al., LiquidGEMM, arXiv 2509.01229.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm_q4._compat import T, ptx, ptx_mma, tirx
from tvm_q4.quant import INT32_MAX
from tvm_q4.schedules.layer import Layer

CHUNK_WORDS = 4
"""int32 words of a chunk: the 16 bytes that one copy moves and one ``ldmatrix`` row holds."""

_WIDEN_SHIFT = 4
_LDMATRIX = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"


@dataclass(frozen=True)
class MmaForm:
    """How a layer's products run.

    Attributes
    ----------
    family : {75, 80, 90}
    bits : {4, 8}
        Width of the operands of the ``mma`` instruction.
    signed : bool
        Whether activations are signed.
    widen : bool
        Whether 4-bit activations are widened to 8 bits in registers.
    """

    family: int
    bits: int
    signed: bool
    widen: bool

    @property
    def rows(self) -> int:
        """Rows of C that one instruction makes."""
        return 8 if self.family == 75 else 16

    @property
    def shape(self) -> str:
        """PTX's name of the shape."""
        if self.family == 75:
            return "m8n8k16" if self.bits == 8 else "m8n8k32"
        return "m16n8k32" if self.bits == 8 else "m16n8k64"

    @property
    def step_chunks(self) -> int:
        """Chunks of a row of activations that a step takes."""
        return 1 if self.family == 75 else 2

    @property
    def products(self) -> int:
        """Instructions for one step and one tile of C: weights take as many times the bytes."""
        return 2 if self.widen else 1

    @property
    def a_registers(self) -> int:
        """Registers of a fragment of activations."""
        return 1 if self.family == 75 else 4

    @property
    def b_registers(self) -> int:
        """Registers of a fragment of weights."""
        return 1 if self.family == 75 else 2

    @property
    def c_registers(self) -> int:
        """Registers of a fragment of sums."""
        return 2 if self.family == 75 else 4

    @property
    def shift(self) -> int:
        """By how many bits sums are too large."""
        return _WIDEN_SHIFT if self.widen and self.signed else 0

    @property
    def channels(self) -> int:
        """Activations in a chunk."""
        return 32 if self.bits == 4 or self.widen else 16

    def __str__(self) -> str:
        sign = "s" if self.signed else "u"
        note = " (4-bit activations widened in registers)" if self.widen else ""
        return f"{sign}{self.bits}s{self.bits} mma.{self.shape}{note}"


def mma_form(layer: Layer, family: int) -> MmaForm | None:
    """The form for a convolution or linear layer; None where tensor cores cannot do it.

    Parameters
    ----------
    layer : Layer
        Its data is packed, 4 or 8 bits an element.
    family : {75, 80, 90}
    """
    data, weight_bits = layer.data, layer.ops[0].attrs["weight_bits"]
    if data.range is None or data.layout.bits not in (4, 8):
        return None
    native = data.layout.bits == 4 and weight_bits == 4 and family < 90
    widen = data.layout.bits == 4 and not native
    form = MmaForm(family, 4 if native else 8, data.range.signed, widen)
    largest = 128 * int(layer.ops[0].params["weight"][0].size) * (8 << form.shift)
    return None if widen and largest > INT32_MAX else form


Pointer = Callable[[Any, Any], Any]
"""Address in shared memory of a chunk: ``pointer(row, chunk)``."""


class WarpTile:
    """Registers and instructions of one warp, whose ``rows x cols`` sums are tiles of the form."""

    def __init__(self, form: MmaForm, rows: int, cols: int) -> None:
        self.form, self.m_tiles, self.n_tiles = form, rows // form.rows, cols // 8
        self.sums = T.alloc_buffer(
            (self.m_tiles * self.n_tiles * form.c_registers,), "int32", scope="local"
        )

    def clear(self) -> None:
        """Set all sums to zero."""
        for i in range(self.m_tiles * self.n_tiles * self.form.c_registers):
            T.buffer_store(self.sums, tirx.const(0, "int32"), [i])

    def row_slots(self) -> int:
        """Rows of C of which a lane holds values."""
        return self.m_tiles * (self.form.c_registers // 2)

    def row(self, slot: int, lane: Any) -> Any:
        """Row within the warp's tile of a slot of this lane."""
        per = self.form.c_registers // 2
        return slot // per * self.form.rows + slot % per * 8 + lane // 4

    def value(self, slot: int, n_tile: int, i: int) -> Any:
        """Sum that this lane holds in column ``8 * n_tile + 2 * t + i`` of a row slot."""
        per = self.form.c_registers // 2
        tile = slot // per * self.n_tiles + n_tile
        total = self.sums[tile * self.form.c_registers + slot % per * 2 + i]
        return total >> tirx.const(self.form.shift, "int32") if self.form.shift else total

    def step(self, k: int, a: Pointer, b: Pointer, lane: Any) -> None:
        """Multiply step `k` of a slab; pointers are those of the warp's first row and chunk 0."""
        form = self.form
        fragments = self._load_a(k, a, lane)
        for part in range(form.products):
            words = self._widened(fragments, part) if form.widen else fragments
            weights = self._load_b(k * form.products + part, b, lane)
            for i in range(self.m_tiles):
                for j in range(self.n_tiles):
                    self._multiply(words, weights, i, j)

    def _load_a(self, k: int, pointer: Pointer, lane: Any) -> Any:
        count = self.m_tiles * self.form.a_registers
        out = T.alloc_buffer((count,), "uint32", scope="local")
        rows_a_load = 32 if self.form.family == 75 else 16
        for i in range(0, count, 4):
            first = i // 4 * rows_a_load
            if self.form.family == 75:
                address = pointer(first + lane, k)
            else:
                address = pointer(first + lane % 16, k * 2 + lane // 16)
            _ldmatrix(out, i, address)
        return out

    def _load_b(self, k: int, pointer: Pointer, lane: Any) -> Any:
        count = self.n_tiles * self.form.b_registers
        out = T.alloc_buffer((count,), "uint32", scope="local")
        for i in range(0, count, 4):
            if self.form.family == 75:
                address = pointer(i * 8 + lane, k)
            else:
                address = pointer(i * 4 + lane % 8 + lane // 16 * 8, k * 2 + lane // 8 % 2)
            _ldmatrix(out, i, address)
        return out

    def _widened(self, fragments: Any, part: int) -> Any:
        """Even (part 0) or odd channels of every register, one a byte."""
        count = self.m_tiles * self.form.a_registers
        out = T.alloc_buffer((count,), "uint32", scope="local")
        four = tirx.const(4, "uint32")
        for i in range(count):
            x = fragments[i]
            if self.form.signed:
                moved, mask = (x << four if part == 0 else x), 0xF0F0F0F0
            else:
                moved, mask = (x if part == 0 else x >> four), 0x0F0F0F0F
            T.buffer_store(out, moved & tirx.const(mask, "uint32"), [i])
        return out

    def _multiply(self, a: Any, b: Any, i: int, j: int) -> None:
        form = self.form
        a_type, b_type = (
            f"{'int' if form.signed else 'uint'}{form.bits}",
            f"int{form.bits}",
        )
        T.evaluate(
            ptx_mma(
                form.shape,
                "row",
                "col",
                a_type,
                b_type,
                "int32",
                a.data,
                i * form.a_registers,
                b.data,
                j * form.b_registers,
                self.sums.data,
                (i * self.n_tiles + j) * form.c_registers,
                False,
            )
        )


def _ldmatrix(out: Any, first: int, address: Any) -> None:
    """Four 8x8 matrices of 16-bit elements, each lane naming one row of 16 bytes."""
    T.evaluate(ptx[_LDMATRIX](*(out[first + e] for e in range(4)), address))
