"""Which rule and which instruction a layer gets, by arch and bits; nothing is compiled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.schedules.builders import S4, S8, U4, U8, module, requantized, weights
from tests.schedules.cuda.builders import cuda, lower
from tests.schedules.cuda.convolutions import Conv
from tvm_q4 import ops
from tvm_q4.cuda_target import family_of_arch
from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import IntRange
from tvm_q4.relay_passes.lower_to_tir import LoweredCall
from tvm_q4.schedules.cuda.device import device_of
from tvm_q4.schedules.cuda.tensor_core import mma_form

ARCHS = (75, 80, 86, 87, 88, 89, 90, 100, 120)
PLAIN = Conv((1, 64, 7, 7), 64, (3, 3), padding=(1, 1, 1, 1))
SHAPES = {
    75: ("mma.m8n8k16", "mma.m8n8k32"),
    80: ("mma.m16n8k32", "mma.m16n8k64"),
    90: ("mma.m16n8k32", "mma.m16n8k32"),
}


def _call(conv: Conv, arch: int) -> LoweredCall:
    (call,) = [c for c in lower(conv.module(), arch).calls if c.layer.kind == "conv2d"]
    return call


def _executes(conv: Conv, arch: int) -> str:
    call = _call(conv, arch)
    assert call.choice.rule.name == "cuda.tensor_core_conv2d"
    return call.choice.rule.executes_as(call.layer, cuda(arch), call.choice.params)


@pytest.mark.parametrize("arch", ARCHS)
def test_w8a8(arch: int) -> None:
    shape = SHAPES[family_of_arch(arch)][0]
    assert _executes(PLAIN, arch) == f"u8s8 {shape}"
    assert _executes(replace(PLAIN, data=S8), arch) == f"s8s8 {shape}"


@pytest.mark.parametrize("arch", ARCHS)
def test_w4a4(arch: int) -> None:
    family = family_of_arch(arch)
    text = _executes(replace(PLAIN, data=U4, bits=4, result=U4), arch)
    if family == 90:
        assert text == f"u8s8 {SHAPES[90][0]} (4-bit activations widened in registers)"
    else:
        assert text == f"u4s4 {SHAPES[family][1]}"
        signed = _executes(replace(PLAIN, data=S4, bits=4, result=S4), arch)
        assert signed == f"s4s4 {SHAPES[family][1]}"


@pytest.mark.parametrize("arch", [75, 80, 90])
def test_w4a8_runs_as_bytes(arch: int) -> None:
    text = _executes(replace(PLAIN, bits=4), arch)
    assert text == f"u8s8 {SHAPES[family_of_arch(arch)][0]}"


@pytest.mark.parametrize("arch", [75, 80, 90])
def test_4_bit_data_with_8_bit_weights_is_widened(arch: int) -> None:
    text = _executes(replace(PLAIN, data=U4), arch)
    assert text.endswith("(4-bit activations widened in registers)")


def test_widening_is_refused_where_sums_would_overflow() -> None:
    call = _call(replace(PLAIN, data=S4, bits=4, result=S4), 90)
    layer = call.layer
    assert mma_form(layer, 90) is not None
    layer.ops[0].params["weight"] = np.zeros((1, 2**18, 1, 1), np.int8)
    assert mma_form(layer, 90) is None


def test_16_bit_data_is_refused_in_one_line() -> None:
    values = IntRange(-32768, 32767)

    def emit(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
        rng = np.random.default_rng(0)
        acc = b.emit(
            ops.conv2d(
                x, weights(rng, 8, (16, 16, 1, 1)), [0], name="c", strides=[1, 1], padding=[0] * 4
            )
        )
        return requantized(b, acc, rng)

    mod: tvm.IRModule = module((1, 16, 4, 4), values, emit, "int16")
    with pytest.raises(UnsupportedError, match="'c'") as caught:
        lower(mod, 80)
    assert "\n" not in str(caught.value)


@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 128),
    channels=st.integers(1, 2048),
    out=st.integers(1, 2048),
    size=st.integers(1, 60),
    bits=st.sampled_from([4, 8]),
    arch=st.sampled_from([75, 80, 89, 90]),
)
def test_there_is_a_tile_for_every_shape(
    batch: int, channels: int, out: int, size: int, bits: int, arch: int
) -> None:
    data = U4 if bits == 4 else U8
    call = _call(Conv((batch, channels, size, size), out, bits=bits, data=data), arch)
    rule, target = call.choice.rule, cuda(arch)
    space = rule.space(call.layer, target)
    device = device_of(target)
    assert space
    assert len({tuple(p.values()) for p in space}) == len(space)
    for params in space[:: max(1, len(space) // 10)]:
        assert all(type(value) is int for value in params.values())
        assert params["bm"] % params["wm"] == params["bn"] % params["wn"] == 0
        assert np.isfinite(rule.predict(call.layer, target, params))
        slab = (params["bm"] + params["bn"]) * params["bk"]
        assert params["stages"] * slab <= device.shared_per_block
