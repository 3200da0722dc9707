"""Pre-packing of weights for tensor cores: [output channel, chunk], k contiguous.

A row holds one output channel in the order of k that `ConvShape` states, in chunks of 16 bytes. The
form does not depend on the tile (but for grouped layers), so that families share it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tvm_q4.schedules.cuda.conv_shape import K_ALIGNMENT, ConvShape
from tvm_q4.schedules.cuda.tensor_core import MmaForm
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES, round_up

_CHUNK_BYTES = 16


def packed_rows(layer: Layer) -> int:
    """Output channels that packed weights hold; the last ones are zeros."""
    return round_up(layer.shape[1], LANES)


def packed_chunks(shape: ConvShape, form: MmaForm) -> int:
    """Chunks of a row of packed weights."""
    return round_up(shape.chunks, K_ALIGNMENT) * form.products


def pack_weights(layer: Layer, shape: ConvShape, form: MmaForm) -> NDArray[np.int32]:
    """Weights as int32 words, flat [rows, chunks, 4], lowest k in the lowest bits."""
    k = _in_order_of_k(layer, shape, form)
    if form.widen:
        k = _even_then_odd(k, form)
    if form.bits == 4:
        k = (k[:, 0::2] & 15) | (k[:, 1::2] << 4)
    packed = np.ascontiguousarray(k).view(np.int32)
    assert packed.shape == (packed_rows(layer), packed_chunks(shape, form) * 4)
    return packed.reshape(-1)


def _in_order_of_k(layer: Layer, shape: ConvShape, form: MmaForm) -> NDArray[np.uint8]:
    """Two's complement bytes [rows, k], one weight a byte, zeros where nothing is connected."""
    weight = layer.ops[0].params["weight"].view(np.uint8)
    weight = weight.reshape(*weight.shape, *(1,) * (4 - weight.ndim))
    out, group_in = weight.shape[:2]
    group_out = out // layer.ops[0].attrs.get("groups", 1)
    width = layer.data.layout.channels if shape.narrow else shape.window.chunks * form.channels
    window = np.zeros((packed_rows(layer), shape.kh, shape.kw, width), np.uint8)
    for first in range(0, out, group_out):
        begin = first // group_out * group_in
        for o in range(first, first + group_out):
            at = begin - int(shape.window.start(o)) * form.channels
            window[o, :, :, at : at + group_in] = weight[o].transpose(1, 2, 0)
    lines = window.reshape(window.shape[0], shape.kh, -1)
    line = shape.row_chunks * form.channels
    whole = round_up(shape.chunks, K_ALIGNMENT) * form.channels
    k = np.zeros((window.shape[0], whole), np.uint8)
    padded = np.pad(lines, ((0, 0), (0, 0), (0, line - lines.shape[2])))
    k[:, : shape.kh * line] = padded.reshape(window.shape[0], -1)
    return k


def _even_then_odd(k: NDArray[np.uint8], form: MmaForm) -> NDArray[np.uint8]:
    """The order that widened activations have: a step's even channels, then its odd ones."""
    step = form.step_chunks * form.channels
    return np.ascontiguousarray(k.reshape(k.shape[0], -1, step // 2, 2).swapaxes(2, 3)).reshape(
        k.shape[0], -1
    )
