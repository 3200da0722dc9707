"""Dot-product forms of x86 and of any CPU: how one vector multiply-accumulate step is written.

Every form multiplies `width` consecutive channels of one pixel, broadcast to all lanes, with
`width` weights of each of `LANES` output channels, and adds to `LANES` int32 accumulators.

===========  =====  =====================================================================
form         width  instruction
===========  =====  =====================================================================
vnni512      4      ``vpdpbusd`` on 512 bits (AVX512-VNNI)
vnni256      4      ``vpdpbusd`` on 256 bits (AVX-VNNI, or AVX512VL-VNNI)
maddubs      4      ``vpmaddubsw`` + ``vpmaddwd``; only where no pair can exceed int16
madd         2      ``vpmaddwd`` on weights and activations widened to int16 (AVX2)
generic      1      widening multiply and add, left to LLVM
===========  =====  =====================================================================

4-bit weights are unpacked in registers: one packed vector holds two steps, low nibbles first. Where
products allow it a nibble is used as 16 times its value (``x << 4`` or ``x & 0xF0``, no sign
extension) and the accumulator is divided by 16 at the end, exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tvm.target import Target

from tvm_q4._compat import target_has_features, tirx
from tvm_q4.quant import IntRange
from tvm_q4.schedules import lanes
from tvm_q4.schedules.layout import LANES


@dataclass(frozen=True)
class DotForm:
    """One form; see the module's table.

    Parameters
    ----------
    name : str
    width : int
        Channels of one step.
    unsigned_only : bool
        Whether activations must be unsigned (signed ones are shifted by 128).
    nibble_scale : int
        Factor by which unpacked 4-bit weights are too large (16 or 1).
    registers : int
        Vectors of `LANES` int32 that one tile may use for accumulators and weights. One is two
        registers in the 256-bit forms, of which AVX2 has 16 and the form needs a few itself: with
        twice as many, spills halve the speed (measured with LLVM on Zen 4).
    """

    name: str
    width: int
    unsigned_only: bool
    nibble_scale: int
    registers: int

    @property
    def vector_bytes(self) -> int:
        """Bytes of one step's int8 weights."""
        return LANES * self.width

    def broadcast(self, buffer: Any, index: list[Any], signed: bool) -> Any:
        """One step's activations of one pixel in every lane, as `accumulate` takes them."""
        if self.width == 1:
            value = buffer[tuple(index)]
            return lanes.splat(tirx.Cast("int32", value), "int32")
        if self.width == 2:
            pair = [tirx.Cast("int32", buffer[tuple([*index[:-1], index[-1] + i])]) for i in (0, 1)]
            word = (pair[0] & 0xFFFF) | (pair[1] << 16)
            return tirx.reinterpret("int16x16", tirx.Broadcast(word, 8))
        word = tirx.reinterpret("int32", lanes.load(buffer, index, 4))
        if signed:
            word = word ^ tirx.const(-0x7F7F7F80, "int32")
        return tirx.reinterpret("int8x64", tirx.Broadcast(word, LANES))

    def accumulate(self, acc: Any, data: Any, weight: Any) -> Any:
        """``acc + dot(data, weight)`` per lane; `weight` is an int8 vector of `vector_bytes`."""
        if self.name == "vnni512":
            return _llvm("int32x16", "avx512.vpdpbusd.512", acc, data, weight)
        if self.name == "generic":
            return acc + data * lanes.cast(weight, "int32")
        halves = [self._half(_slice(acc, "int32", i, 8), data, weight, i) for i in (0, 1)]
        return _join(halves)

    def _half(self, acc: Any, data: Any, weight: Any, i: int) -> Any:
        if self.name == "madd":
            wide = tirx.Cast("int16x16", _slice(weight, "int8", i, 16))
            return acc + _llvm("int32x8", "avx2.pmadd.wd", data, wide)
        half_data, half_weight = _slice(data, "int8", i, 32), _slice(weight, "int8", i, 32)
        if self.name == "vnni256":
            return _llvm("int32x8", "avx512.vpdpbusd.256", acc, half_data, half_weight)
        pairs = _llvm("int16x16", "avx2.pmadd.ub.sw", half_data, half_weight)
        ones = tirx.Broadcast(tirx.const(1, "int16"), 16)
        return acc + _llvm("int32x8", "avx2.pmadd.wd", pairs, ones)

    def unpack(self, packed: Any) -> tuple[Any, Any]:
        """Two steps' int8 weights from one packed vector of `vector_bytes` bytes."""
        size = self.vector_bytes

        def byte(value: int) -> Any:
            return tirx.Broadcast(tirx.const(value, "int8"), size)

        if self.nibble_scale == 16:
            return _shifted_left(packed, size) & byte(-16), packed & byte(-16)
        low = packed & byte(15)
        high = tirx.reinterpret(
            f"int8x{size}",
            (
                tirx.reinterpret(f"uint8x{size}", packed)
                >> tirx.Broadcast(tirx.const(4, "uint8"), size)
            ),
        )
        return (low ^ byte(8)) - byte(8), (high ^ byte(8)) - byte(8)


def _shifted_left(packed: Any, size: int) -> Any:
    words = tirx.reinterpret(f"int32x{size // 4}", packed)
    return tirx.reinterpret(
        f"int8x{size}", words << tirx.Broadcast(tirx.const(4, "int32"), size // 4)
    )


def _llvm(dtype: str, name: str, *args: Any) -> Any:
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.x86.{name}", *args)


def _slice(vector: Any, dtype: str, part: int, count: int) -> Any:
    """Elements ``part * count .. + count - 1`` of a vector, as LLVM's shufflevector."""
    return tirx.Shuffle([vector], [tirx.const(part * count + i, "int32") for i in range(count)])


def _join(parts: list[Any]) -> Any:
    return tirx.Shuffle(parts, [tirx.const(i, "int32") for i in range(LANES)])


@lru_cache
def features(target_json: str) -> frozenset[str]:
    """Those of the CPU features that matter here which a target (its JSON text) has."""
    names = ("avx2", "avx512vnni", "avx512vl", "avxvnni")
    target = Target(json.loads(target_json))
    return frozenset(n for n in names if target_has_features(n, target))


def dot_forms(target: Target, data: IntRange, weight_bits: int) -> list[DotForm]:
    """Forms that are exact for these operands on `target`, best first.

    ``maddubs`` adds two products in saturating int16: it qualifies only where
    ``2 * max|x| * max|w|`` fits, from the declared ranges.
    """
    has = features(str(target))
    top = 255 if data.signed else max(data.hi, 1)
    scaled = 2 * top * 128 <= 32767
    out = []
    if "avx512vnni" in has:
        out.append(DotForm("vnni512", 4, True, 16, 30))
    if "avxvnni" in has or {"avx512vnni", "avx512vl"} <= has:
        out.append(DotForm("vnni256", 4, True, 16, 7))
    if "avx2" in has:
        if 2 * top * (1 << (weight_bits - 1)) <= 32767:
            out.append(DotForm("maddubs", 4, True, 16 if scaled else 1, 6))
        out.append(DotForm("madd", 2, False, 1, 7))
    out.append(DotForm("generic", 1, False, 1, 30))
    return out
