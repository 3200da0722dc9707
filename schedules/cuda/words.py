"""Elements packed into int32 words: reading them, and packing results with saturation.

Packing uses ``cvt.pack.sat`` (one I2IP instruction on every target from sm_75 to sm_120), which
limits two int32 values to the type's range and appends them to a word.
"""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, ptx, tirx
from tvm_q4.quant import IntRange
from tvm_q4.schedules.layout import WORD_BITS


def element(word: Any, index: Any, bits: int, signed: bool) -> Any:
    """Element `index` (an int or an expression) of an int32 word, as int32."""
    if bits == WORD_BITS:
        return word
    if not isinstance(index, int):
        mask = tirx.const((1 << bits) - 1, "int32")
        if not signed:
            return (word >> (index * bits)) & mask
        top = tirx.const(WORD_BITS - bits, "int32")
        return (word << (top - index * bits)) >> top
    low = index * bits
    if bits == 8:
        return _byte(word, index, signed)
    if bits == 4 and not signed:
        half = word >> tirx.const(4, "int32") if index % 2 else word
        return _byte(half & tirx.const(0x0F0F0F0F, "int32"), index // 2, signed)
    if signed:
        return raised(word, index, bits) >> tirx.const(WORD_BITS - bits, "int32")
    shifted = word >> tirx.const(low, "int32") if low else word
    return shifted & tirx.const((1 << bits) - 1, "int32")


def _byte(word: Any, index: int, signed: bool) -> Any:
    """Byte of a word by one PRMT, extended with its sign or with a byte of zero.

    nvcc does not see that the result is not negative; where it does, it multiplies such values by
    signed ones with four instructions in place of an IMAD.WIDE.
    """
    out = T.alloc_buffer((1,), "int32", scope="local")
    rest = index + 8 if signed else 4
    T.evaluate(ptx["prmt.b32"](out[0], word, 0, rest * 0x1110 + index))
    return out[0]


def raised(word: Any, index: int, bits: int) -> Any:
    """The int32 word shifted so that element `index` is in its highest bits.

    Raised words compare as their elements do, whatever is in the bits below.
    """
    high = WORD_BITS - bits - index * bits
    return word << tirx.const(high, "int32") if high else word


def saturates(values: IntRange, bits: int) -> bool:
    """Whether packing limits values to just this range, so that no clamp is needed before."""
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if values.signed else (0, 2**bits - 1)
    return bits in (4, 8) and (values.lo, values.hi) == (low, high)


def pack(values: list[Any], bits: int, signed: bool, buffer: Any, index: int) -> None:
    """Pack int32 values into a word, the first in the lowest bits.

    Parameters
    ----------
    values : list of expression
        ``32 / bits`` values; of 4 and 8 bits they are limited to the type's range.
    buffer : Buffer
        uint32 buffer in registers; its element `index` gets the word.
    """
    if bits == WORD_BITS:
        T.buffer_store(buffer, tirx.Cast("uint32", values[0]), [index])
        return
    if bits == 16:
        low, high = (tirx.Cast("uint32", v) for v in values)
        mask, up = tirx.const(0xFFFF, "uint32"), tirx.const(16, "uint32")
        T.buffer_store(buffer, (low & mask) | (high << up), [index])
        return
    kind = getattr(ptx.cvt_pack.sat, f"{'s' if signed else 'u'}{bits}").s32.b32
    rest: Any = tirx.const(0, "uint32")
    for i in range(len(values) - 2, -1, -2):
        T.evaluate(kind(buffer[index], values[i + 1], values[i], rest))
        rest = buffer[index]


def repeated(value: int, bits: int) -> int:
    """The int32 word whose every element is `value`."""
    mask = (1 << bits) - 1
    word = sum((value & mask) << shift for shift in range(0, WORD_BITS, bits))
    return word - (1 << WORD_BITS) if word >= 1 << (WORD_BITS - 1) else word
