"""A convolution or linear layer as a matrix product over chunks of 16 bytes (implicit GEMM).

Rows of the product are output pixels, columns output channels. k runs over kernel rows, kernel
columns and channels, in chunks that lie together in memory. In an image of few channels one row of
the window is a single run of words, padded to whole chunks (weights beyond the window are zero).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cuda.tensor_core import CHUNK_WORDS
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import round_up

K_ALIGNMENT = 8
"""Packed weights hold a multiple of so many chunks: the widest slab, so one form serves all."""


@dataclass(frozen=True)
class ChannelWindow:
    """Input channels that a tile of output channels reads, in chunks of a pixel.

    `step` chunks further for every `every` output channels; ungrouped layers read all of them.
    """

    chunks: int
    every: int = 0
    step: int = 0

    def start(self, channel: Any) -> Any:
        """First chunk for a tile that begins at output channel `channel`."""
        return channel // self.every * self.step if self.every else 0


class ConvShape:
    """Loop extents and addresses of one layer.

    Parameters
    ----------
    layer : Layer
        A convolution or linear layer of packed data.
    tile_channels : int
        Output channels of a block, which decide what a grouped layer's block reads.
    chunk_channels : int
        Activations in a chunk.
    """

    def __init__(self, layer: Layer, tile_channels: int, chunk_channels: int) -> None:
        op, data = layer.ops[0], layer.data
        self.images, self.out_channels, self.oh, self.ow = layer.shape
        weight = op.params["weight"].shape
        self.kh, self.kw = (int(k) for k in weight[2:]) if len(weight) == 4 else (1, 1)
        self.stride = tuple(op.attrs.get("strides", (1, 1)))
        self.dilation = tuple(op.attrs.get("dilation", (1, 1)))
        top, left = op.attrs.get("padding", (0, 0))[:2]
        self.height, self.width, self.pixel_words = data.physical_shape[1:]
        self.origin = (data.layout.halo[0] - top, data.layout.halo[1] - left)
        self.narrow = self.pixel_words % CHUNK_WORDS != 0
        self.window = _window(layer, tile_channels, chunk_channels)
        if self.narrow:
            self.row_chunks = round_up(self.kw * self.pixel_words, CHUNK_WORDS) // CHUNK_WORDS
            self.chunks = self.kh * self.row_chunks
        else:
            self.row_chunks = self.kw * self.window.chunks
            self.chunks = self.kh * self.row_chunks

    @property
    def rows(self) -> int:
        """Rows of the product: output pixels of all images."""
        return self.images * self.oh * self.ow

    def place(self, row: Any) -> tuple[Any, Any, Any]:
        """Logical (n, h, w) of an output pixel."""
        return row // (self.oh * self.ow), row // self.ow % self.oh, row % self.ow

    def granule(self) -> int:
        """Bytes of one copy: 16 where every chunk is aligned."""
        words = [self.pixel_words * self.stride[1], self.width * self.pixel_words]
        words.append(self.origin[1] * self.pixel_words)
        return 4 * math.gcd(CHUNK_WORDS, *words) if self.narrow else 16

    def base(self, place: tuple[Any, Any, Any], channel: Any) -> Any:
        """Word at which the window of an output pixel begins, for a tile of output channels."""
        n, y, x = place
        line = n * self.height + y * self.stride[0] + self.origin[0]
        pixel = line * self.width + x * self.stride[1] + self.origin[1]
        return pixel * self.pixel_words + self.window.start(channel) * CHUNK_WORDS

    def offset(self, slab: Any, chunk: Any, slab_chunks: int) -> Any:
        """Words from a window's beginning to chunk `chunk` of a slab of `slab_chunks`."""
        if self.narrow:
            q = tirx.min(slab * slab_chunks + chunk, self.chunks - 1)
            line = q // self.row_chunks * self.dilation[0] * self.width * self.pixel_words
            return line + q % self.row_chunks * CHUNK_WORDS
        per = self.window.chunks
        if per % slab_chunks == 0:
            tap, first = slab // (per // slab_chunks), slab % (per // slab_chunks) * slab_chunks
            within = first + chunk
        else:
            q = tirx.min(slab * slab_chunks + chunk, self.chunks - 1)
            tap, within = q // per, q % per
        r, s = tap // self.kw, tap % self.kw
        pixel = r * self.dilation[0] * self.width + s * self.dilation[1]
        return T.Bind(pixel * self.pixel_words + within * CHUNK_WORDS)


def _window(layer: Layer, tile_channels: int, chunk_channels: int) -> ChannelWindow:
    """What a block reads; all chunks of a pixel where groups do not line up with blocks."""
    op = layer.ops[0]
    everything = ChannelWindow(max(1, layer.data.layout.channels // chunk_channels))
    groups = op.attrs.get("groups", 1)
    if groups == 1:
        return everything
    out, group_in = op.params["weight"].shape[:2]
    group_out = out // groups
    if tile_channels % group_out == 0:
        channels, every = tile_channels // group_out * group_in, tile_channels
    elif group_out % tile_channels == 0:
        channels, every = group_in, group_out
    else:
        return everything
    if channels % chunk_channels:
        return everything
    chunks = channels // chunk_channels
    last = (out - 1) // every * chunks
    if last + chunks > everything.chunks:
        return everything
    return ChannelWindow(chunks, every, chunks)
