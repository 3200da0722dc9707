"""Weights as kernels read them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedules.builders import U4, U8, call_of, cpu, lower, module, weights
from tvm_q4 import ops
from tvm_q4.schedules.cpu.dot import DotForm, dot_forms
from tvm_q4.schedules.cpu.packing import channel_window, dense_blocks, pack_weights
from tvm_q4.schedules.layer import Layer

RNG = np.random.default_rng(4)
FORMS = {f.name: f for f in dot_forms(cpu("znver4"), U4, 4)}


def _layer(w: np.ndarray, groups: int = 1, bits: int = 8) -> Layer:
    channels = w.shape[1] * groups

    def emit(b, x):
        geometry = {"strides": [1, 1], "padding": [0] * 4, "groups": groups}
        return b.emit(ops.conv2d(x, w, [0], name="c", weight_bits=bits, **geometry))

    mod = module((1, channels, *w.shape[2:]), U8, emit)
    return call_of(lower(mod, cpu("x86-64")), "conv2d").layer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_eight_bit_order_is_tile_window_step_block_lane_width(form: str, blocks: int) -> None:
    w = weights(RNG, 8, (50, 20, 2, 3))
    width = FORMS[form].width
    packed = pack_weights(_layer(w), blocks, FORMS[form], four_bit=False)
    assert packed.dtype == np.int8
    view = packed.reshape(64 // (16 * blocks), 2, 3, 20 // width, blocks, 16, width)
    for tile, r, s, step, block, lane, i in np.ndindex(*view.shape):
        o = (tile * blocks + block) * 16 + lane
        expected = w[o, step * width + i, r, s] if o < 50 else 0
        assert view[tile, r, s, step, block, lane, i] == expected


@pytest.mark.parametrize("form", FORMS)
def test_four_bit_words_hold_the_earlier_step_in_low_nibbles(form: str) -> None:
    w = weights(RNG, 4, (16, 16, 1, 2))
    size = FORMS[form].vector_bytes
    wide = pack_weights(_layer(w, bits=4), 1, FORMS[form], four_bit=False)
    packed = pack_weights(_layer(w, bits=4), 1, FORMS[form], four_bit=True)
    assert packed.dtype == np.int32
    assert packed.nbytes * 2 == wide.nbytes == w.nbytes
    nibbles = packed.view(np.uint8).reshape(-1, size)
    steps = np.stack([nibbles & 15, nibbles >> 4], axis=1).reshape(-1, size).astype(np.int8)
    np.testing.assert_array_equal((steps ^ 8) - 8, wide.reshape(-1, size))


def test_a_word_holds_eight_nibbles_lowest_first() -> None:
    w = np.zeros((16, 16, 1, 1), np.int8)
    w[0, :, 0, 0] = [1, 2, 3, 4, -8, -7, -6, -5, 0, 0, 0, 0, 0, 0, 0, 0]
    (word, *_) = pack_weights(_layer(w, bits=4), 1, FORMS["vnni512"], four_bit=True).view(np.uint32)
    # Bytes of one lane's four channels; each has channel i below and channel i + 4 above.
    assert f"{word:08x}" == "b4a39281"


@pytest.mark.parametrize(
    ("groups", "out", "group_in", "blocks", "start", "length"),
    [
        (1, 32, 20, 1, [0, 0], 20),
        (32, 32, 1, 1, [0, 16], 16),  # depthwise: sixteen channels for sixteen outputs
        (8, 32, 4, 1, [0, 16], 16),  # four groups of four outputs a vector
        (2, 64, 16, 1, [0, 0, 16, 16], 16),  # two vectors a group
        (2, 64, 16, 2, [0, 16], 16),
        (2, 48, 15, 1, [0, 0, 0], 32),  # 24 outputs a group: vectors straddle groups
    ],
)
def test_window_covers_the_groups_of_a_block(
    groups: int, out: int, group_in: int, blocks: int, start: list[int], length: int
) -> None:
    window = channel_window(_layer(weights(RNG, 8, (out, group_in, 1, 1)), groups), blocks, 4)
    assert [window.start(i) for i in range(len(start))] == start
    assert window.length == length


def test_other_groups_get_zero_weights() -> None:
    w = weights(RNG, 8, (32, 4, 3, 1))
    layer = _layer(w, groups=8)
    dense = dense_blocks(layer, 1, channel_window(layer, 1, 4))
    assert dense.shape == (2, 3, 1, 16, 1, 16)
    for o in range(32):
        tile, lane = divmod(o, 16)
        own = slice(lane // 4 * 4, lane // 4 * 4 + 4)
        np.testing.assert_array_equal(dense[tile, :, 0, own, 0, lane], w[o, :, :, 0].T)
        others = np.delete(dense[tile, :, 0, :, 0, lane], own, axis=1)
        assert not others.any()


def test_windows_stay_inside_a_pixel() -> None:
    # Rounding the last group's window up to eight channels would pass the pixel's 48.
    w = weights(RNG, 8, (64, 11, 1, 1))
    layer = _layer(w, groups=4)
    window = channel_window(layer, 1, 8)
    assert int(window.start(3)) + window.length <= layer.data.layout.channels


def test_packing_needs_no_four_bit_form_of_its_own() -> None:
    form = DotForm("generic", 1, False, 1, 30)
    w = weights(RNG, 4, (16, 2, 1, 1))
    packed = pack_weights(_layer(w, bits=4), 1, form, four_bit=True).view(np.uint8)
    np.testing.assert_array_equal(packed & 15, w[:, 0, 0, 0].view(np.uint8) & 15)
    np.testing.assert_array_equal(packed >> 4, w[:, 1, 0, 0].view(np.uint8) & 15)
