"""Requantization from the high words of 64-bit products: about half the vector instructions.

Where a shift ``e`` is at least 33, the rounding constant lies in the high word alone, so that

    (p + 2**(e-1)) >> e  ==  ((p >> 32) + 2**(e-33)) >> (e-32)

for every 64-bit product ``p``. Even and odd lanes are multiplied apart, as x86 does it, their high
words are merged into one int32 vector, and all that follows works on 32-bit lanes. A smaller shift
is raised by doubling a multiplier, or the value before, once for each bit, which changes nothing;
`prepare` proves that nothing overflows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_q4._compat import T, ptx, tirx
from tvm_q4.quant import INT32_MAX
from tvm_q4.schedules import lanes
from tvm_q4.schedules.layout import LANES

LOWEST_SHIFT = 33
_HIGHEST_SHIFT = 62
_PAIRS = LANES // 2

Product = tuple[list[Any], Any]
"""Terms of a value, and its multiplier."""


def prepare(
    sides: list[tuple[np.ndarray, int]], shift: np.ndarray
) -> tuple[list[np.ndarray], list[int], np.ndarray] | None:
    """Constants for `sum_of_products_high`, or None where it would not be exact.

    Parameters
    ----------
    sides : list of (ndarray, int)
        Of each product that is summed: multipliers (int32, [1] or [C]) and the largest magnitude
        of the value that they multiply.
    shift : ndarray
        Shifts of the sum, int32, [1] or [C].

    Returns
    -------
    (list of ndarray, list of int, ndarray) or None
        Multipliers, by how many bits each value is shifted left before, and shifts in 33..62. A
        channel whose multipliers are all 0 gives 0 with any shift and gets 33.
    """
    *factors, shifts = np.broadcast_arrays(*(m.astype(np.int64) for m, _ in sides), shift)
    live = np.any([m != 0 for m in factors], axis=0)
    shifts = np.where(live, shifts.astype(np.int64), LOWEST_SHIFT)
    extra = max(0, LOWEST_SHIFT - int(shifts.min()))
    shifts = shifts + extra
    if int(shifts.max()) > _HIGHEST_SHIFT:
        return None
    before, peaks = [], []
    for i, (factor, (_, peak)) in enumerate(zip(factors, sides, strict=True)):
        doubled = int(np.abs(factor).max()) << extra <= INT32_MAX
        if not doubled and peak << extra > INT32_MAX:
            return None
        factors[i] = factor << extra if doubled else factor
        before.append(0 if doubled else extra)
        peaks.append(np.abs(factor).astype(object) * (peak << extra))
    if int(np.max(sum(peaks) + 2 ** (shifts.astype(object) - 1))) >= 1 << 63:
        return None
    return [f.astype(np.int32) for f in factors], before, shifts.astype(np.int32)


def sum_of_products_high(products: list[Product], shift: Any, width: int = LANES) -> Any:
    """``sum(value * multiplier)`` in 64 bits, rounded half up and shifted right, as int32.

    Parameters
    ----------
    products : list of (list of expression, expression)
        int32 vectors: terms of a value, and its multiplier. More than one term, with scalars only,
        stands for their sum.
    shift : expression
        int32 vector of shifts, each in 33..62.
    width : int
        Lanes of the vectors; scalars where 1.
    """
    # Masks, not subtractions: TVM 0.27 finds -1..0 for ``x >> (s - 32)`` and drops the clamp after.
    one, mask = lanes.splat(1, "int32", width), lanes.splat(31, "int32", width)
    half = one << ((shift - one) & mask)
    if width == 1:
        return _high_scalar(products, half) >> (shift & mask)
    return (_high_vector([(value, factor) for (value,), factor in products]) + half) >> (
        shift & mask
    )


def _high_scalar(products: list[Product], half: Any) -> Any:
    """High word of `half` in the high word and all products: one IMAD.WIDE each on GPUs.

    Constants come first, since nvcc computes them once for all pixels of a channel.
    """
    word = tirx.const(32, "int64")
    total = tirx.Cast("int64", half) << word
    for position, (terms, factor) in enumerate(products):
        total = _in_register(total) if position else total
        for term in terms:
            total = total + tirx.Cast("int64", term) * tirx.Cast("int64", factor)
    return tirx.Cast("int32", total >> word)


def _in_register(value: Any) -> Any:
    """The int64 value, where nvcc cannot take sums apart: it would add products in other orders."""
    out = T.alloc_buffer((1,), "int64", scope="local")
    T.evaluate(ptx["mov.b64"](out[0], value))
    return out[0]


def _high_vector(pairs: list[tuple[Any, Any]]) -> Any:
    """High words of sums of products, as an int32 vector."""
    even = odd = None
    for value, factor in pairs:
        (a, b), (c, d) = _even_odd(value), _even_odd(factor)
        even = a * c if even is None else even + a * c
        odd = b * d if odd is None else odd + b * d
    words = [tirx.reinterpret(f"int32x{LANES}", p) for p in (even, odd)]
    order = [i for lane in range(1, LANES, 2) for i in (lane, LANES + lane)]
    return tirx.Shuffle(words, [tirx.const(i, "int32") for i in order])


def _even_odd(vector: Any) -> tuple[Any, Any]:
    """Sign-extended even and odd lanes; LLVM turns their product into ``vpmuldq``."""
    pairs = tirx.reinterpret(f"int64x{_PAIRS}", vector)
    word = lanes.splat(32, "int64", _PAIRS)
    return (pairs << word) >> word, pairs >> word
