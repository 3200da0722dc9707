"""Pre-packing of convolution weights into the order in which a CPU kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_q4.schedules.cpu.dot import DotForm
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES, round_up


@dataclass(frozen=True)
class ChannelWindow:
    """Input channels that a block of output channels reads: ``start(block)``, `length` of them.

    Ungrouped layers read all channels. In grouped ones a block's window is the union of its groups;
    weights outside a channel's own group are zeros.
    """

    block: int
    group_in: int
    group_out: int
    length: int

    def start(self, block_index: object) -> object:
        """First input channel of a block (int or TIR expression)."""
        if self.group_in == 0:
            return 0
        return (block_index * self.block) // self.group_out * self.group_in  # type: ignore[operator]


def channel_window(layer: Layer, blocks: int, step: int) -> ChannelWindow:
    """Window for register tiles of `blocks` vectors whose reads come in `step` channels.

    Falls back to all channels where groups do not line up with the vectors, or where rounding the
    window up to `step` would read past the pixel.
    """
    op = layer.ops[0]
    out, group_in = op.params["weight"].shape[:2]
    groups = op.attrs.get("groups", 1)
    everything = ChannelWindow(blocks * LANES, 0, 1, round_up(layer.data.shape[1], step))
    if groups == 1:
        return everything
    group_out, block = out // groups, blocks * LANES
    if group_out % block and block % group_out:
        return everything
    length = round_up(max(1, block // group_out) * group_in, step)
    last = ((round_up(out, block) - block) // group_out) * group_in
    if last + length > layer.data.layout.channels:
        return everything
    return ChannelWindow(block, group_in, group_out, length)


def dense_blocks(layer: Layer, blocks: int, window: ChannelWindow) -> np.ndarray:
    """Weights as int8 [tiles, KH, KW, window, blocks, LANES], zero where nothing is connected."""
    op = layer.ops[0]
    weight = op.params["weight"]
    weight = weight.reshape(*weight.shape, *(1,) * (4 - weight.ndim))
    out, group_in, kh, kw = weight.shape
    groups = op.attrs.get("groups", 1)
    channels = layer.data.shape[1]
    tiles = round_up(out, LANES) // (blocks * LANES)
    packed = np.zeros((tiles, kh, kw, window.length, blocks * LANES), np.int8)
    for o in range(out):
        tile, lane = divmod(o, blocks * LANES)
        first = (o // (out // groups)) * group_in - int(window.start(tile))  # type: ignore[call-overload]
        packed[tile, :, :, first : first + group_in, lane] = weight[o].transpose(1, 2, 0)
    assert window.length >= 1 and channels >= group_in
    return packed.reshape(tiles, kh, kw, window.length, blocks, LANES)


def pack_weights(layer: Layer, blocks: int, form: DotForm, four_bit: bool) -> np.ndarray:
    """Flat array of a layer's weights: int8, or int32 words of eight nibbles, lowest first.

    The order is [tile, kh, kw, step, block, lane, width]; with 4 bits two steps share one vector,
    the earlier in the low nibbles.
    """
    step = form.width * (2 if four_bit else 1)
    window = channel_window(layer, blocks, step)
    dense = dense_blocks(layer, blocks, window)
    tiles, kh, kw, length = dense.shape[:4]
    steps = dense.reshape(tiles, kh, kw, length // form.width, form.width, blocks, LANES)
    steps = steps.transpose(0, 1, 2, 3, 5, 6, 4)
    if not four_bit:
        return np.ascontiguousarray(steps).reshape(-1)
    pairs = steps.reshape(tiles, kh, kw, length // step, 2, blocks, LANES * form.width).view(
        np.uint8
    )
    nibbles = (pairs[:, :, :, :, 0] & 15) | (pairs[:, :, :, :, 1] << 4)
    return np.ascontiguousarray(nibbles).reshape(-1).view(np.int32)
