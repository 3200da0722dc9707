"""A sample epilogue: bias, 64-bit requantization, clamp, 16-byte stores, packed nibbles."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from tests.cuda_emulator.samples import PTX, copy, function, vector

CHANNELS = 64
PIXELS = 8  # a block's


def _splat(value: int, dtype: str) -> Any:
    return tirx.Broadcast(tirx.const(value, dtype), 4)


def _requantize(acc: Any, bias: Any, multiplier: Any, shift: Any) -> Any:
    """Four channels of ``((acc + bias) * m + 2**(e - 1)) >> e``, clamped to int8, as int32."""
    one = _splat(1, "int64")
    e = tirx.Cast("int64x4", shift)
    product = tirx.Cast("int64x4", acc + bias) * tirx.Cast("int64x4", multiplier)
    rounded = (product + (one << (e - one))) >> e
    clamped = tirx.min(tirx.max(rounded, _splat(-128, "int64")), _splat(127, "int64"))
    return tirx.Cast("int32x4", clamped)


def epilogue(pixels: int) -> PrimFunc:
    """Requantize int32 accumulators X[pixels, 64] to int8 Y, and to Z, nibbles saturated to 0..15.

    Bias B, multiplier M and shift E (at least 1) are per channel. Each thread does 16 channels.
    """
    with IRBuilder() as builder, function("epilogue"):
        x = T.arg("X", T.buffer((pixels, CHANNELS), "int32"))
        b, m, e = (T.arg(n, T.buffer((CHANNELS,), "int32")) for n in "BME")
        y = T.arg("Y", T.buffer((pixels, CHANNELS), "int8"))
        z = T.arg("Z", T.buffer((pixels, CHANNELS // 8), "uint32"))
        blocks = (pixels + PIXELS - 1) // PIXELS
        with (
            T.launch_thread("blockIdx.x", blocks) as bx,
            T.launch_thread("threadIdx.x", PIXELS * 4) as tx,
        ):
            pixel, channel = bx * PIXELS + tx // 4, tx % 4 * 16
            value = T.alloc_buffer((16,), "int32", scope="local")
            bytes_ = T.alloc_buffer((16,), "int8", scope="local")
            nibbles = T.alloc_buffer((2,), "uint32", scope="local")
            with T.If(pixel < pixels), T.Then():
                for i in range(0, 16, 4):
                    at = vector(channel + i)
                    four = _requantize(x[pixel, at], b[at], m[at], e[at])
                    T.buffer_store(value, four, [vector(i)])
                    T.buffer_store(bytes_, tirx.Cast("int8x4", value[vector(i)]), [vector(i)])
                copy(y, [pixel, channel], bytes_, [0], 16)
                _pack(value, nibbles)
                copy(z, [pixel, channel // 8], nibbles, [0], 2)
    return builder.get().with_attr("global_symbol", "epilogue")


def _pack(value: Any, nibbles: Any) -> None:
    """Saturate 16 values to 0..15 and pack eight to a word, the first in the lowest bits."""
    for word in range(2):
        T.buffer_store(nibbles, tirx.const(0, "uint32"), [word])
        for i in range(6, -1, -2):
            a, b = value[8 * word + i + 1], value[8 * word + i]
            pack = PTX.cvt_pack.sat.u4.s32.b32
            T.evaluate(pack(nibbles[word], a, b, nibbles[word]))
