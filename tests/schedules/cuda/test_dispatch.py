"""Which rule, instruction and tile a layer gets on which arch, without compiling anything."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tvm.target import Target

from tests.cuda_emulator.prim_func import lower as lower_func
from tests.schedules.builders import S4, S8, U4, U8, module
from tests.schedules.cuda.builders import cuda, lower
from tests.schedules.cuda.convolutions import Conv
from tests.small_network import quantized
from tvm_q4 import ops
from tvm_q4._compat import T, tirx
from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import IntRange
from tvm_q4.relay_passes.pipeline import to_fused, to_integer, to_kernels
from tvm_q4.schedules.cuda import tile_space
from tvm_q4.schedules.cuda.conv2d import TensorCoreConv2d
from tvm_q4.schedules.cuda.cost import Tile, occupancy
from tvm_q4.schedules.cuda.device import device_of, family_of
from tvm_q4.schedules.cuda.kernel import cuda_func
from tvm_q4.schedules.cuda.pipeline import tir_pipeline
from tvm_q4.schedules.cuda.rules import RULES
from tvm_q4.schedules.cuda.tensor_core import mma_form
from tvm_q4.schedules.cuda.tile import resources
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.rule import Params, ScheduleRule, select
from tvm_q4.tuning_logs.records import Record

RULE = TensorCoreConv2d()
ARCHS = (75, 80, 86, 87, 88, 89, 90, 100, 120)
SMALL = Conv((1, 32, 4, 4), 32, (3, 3), padding=(1, 1, 1, 1))
OPERANDS = {
    "u8 x s8": SMALL,
    "s8 x s8": replace(SMALL, data=S8),
    "u8 x s4": replace(SMALL, bits=4),
    "u4 x s4": replace(SMALL, data=U4, bits=4, result=U4),
    "s4 x s4": replace(SMALL, data=S4, bits=4, result=S4),
    "u4 x s8": replace(SMALL, data=U4),
    "s4 x s8": replace(SMALL, data=S4),
}


class Catch(ScheduleRule):
    """Applies to anything and makes nothing: for layers as rules see them."""

    name = "catch"

    def applies(self, layer: Layer, target: Target) -> bool:
        return True

    def space(self, layer: Layer, target: Target) -> list[Params]:
        return [{}]

    def predict(self, layer: Layer, target: Target, params: Params) -> float:
        return 0.0

    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> tirx.PrimFunc:
        return cuda_func(symbol, target, lambda: T.evaluate(0))


def layer_of(conv: Conv, arch: int = 80) -> Layer:
    """The convolution as rules see it (the same on every arch)."""
    lowered = lower(conv.module(), arch, [Catch()])
    (layer,) = [c.layer for c in lowered.calls if c.layer.ops[0].name == "c"]
    return layer


# --- Rule and instruction ------------------------------------------------------------------------

NATIVE4 = {75: "mma.m8n8k32", 80: "mma.m16n8k64"}
NATIVE8 = {75: "mma.m8n8k16", 80: "mma.m16n8k32", 90: "mma.m16n8k32"}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("operands", OPERANDS)
def test_instruction(operands: str, arch: int) -> None:
    target, layer = cuda(arch), layer_of(OPERANDS[operands])
    family = family_of(target)
    choice = select(list(RULES), layer, target)
    assert choice.rule.name == "cuda.tensor_core_conv2d"
    found = choice.rule.executes_as(layer, target, choice.params)
    sign, narrow = operands[0], operands[1] == "4"
    if narrow and operands.endswith("s4") and family < 90:
        assert found == f"{sign}4s4 {NATIVE4[family]}"
    elif narrow:
        note = "(4-bit activations widened in registers)"
        assert found == f"{sign}8s8 {NATIVE8[family]} {note}"
    else:
        assert found == f"{sign}8s8 {NATIVE8[family]}"


@pytest.mark.parametrize("arch", [a for a in ARCHS if a >= 90])
@pytest.mark.parametrize("operands", [name for name in OPERANDS if "4" in name])
def test_no_int4_mma_from_sm_90(operands: str, arch: int) -> None:
    lowered = lower(OPERANDS[operands].module(), arch)
    (call,) = [c for c in lowered.calls if c.layer.kind == "conv2d"]
    for kernel in lower_func(lowered.mod[call.kernel], f"sm_{arch}", tir_pipeline()):
        products = set(re.findall(r"mma\.sync\S+", kernel.source))
        assert products
        assert not any(re.search(r"\.[su]4\b", p) for p in products)


def test_rules_of_a_network() -> None:
    fused = to_fused(to_integer(quantized()))
    calls = to_kernels(fused, cuda(80), RULES, lambda _: None).calls
    assert [(c.layer.kind, c.choice.rule.name) for c in calls] == [
        ("quantize", "cuda.quantize"),
        ("conv2d", "cuda.tensor_core_conv2d"),
        ("conv2d", "cuda.tensor_core_conv2d"),
        ("avg_pool2d", "cuda.pool2d"),
        ("elementwise", "cuda.elementwise"),
        ("dense", "cuda.tensor_core_conv2d"),
    ]


def test_16_bit_data_has_no_kernel() -> None:
    wide = IntRange(-32768, 32767)
    conv = replace(SMALL, data=wide)
    with pytest.raises(UnsupportedError, match="no schedule rule applies to layer 'c'") as caught:
        lower(conv.module(), 80)
    assert "\n" not in str(caught.value)


def _dense(data: IntRange, bits: int, channels: int) -> Layer:
    def emit(b: Any, x: Any) -> Any:
        w = np.ones((1, channels), np.int8)
        return b.emit(ops.dense(x, w, [0], name="c", weight_bits=bits))

    return lower(module((1, channels), data, emit), 80, [Catch()]).calls[-2].layer


@pytest.mark.parametrize(
    ("data", "largest"),
    [(S4, (2**31 - 1) // (128 * 128)), (U4, (2**31 - 1) // (128 * 8))],
    ids=["signed, 16 times too large", "unsigned"],
)
def test_sums_of_widened_data_fit_int32(data: IntRange, largest: int) -> None:
    fits, beyond = _dense(data, 4, largest), _dense(data, 4, largest + 1)
    assert mma_form(fits, 90) is not None
    assert mma_form(beyond, 90) is None
    assert mma_form(beyond, 80) is not None, "nothing is widened where there is an int4 instruction"
    with pytest.raises(UnsupportedError, match="no schedule rule applies"):
        select(list(RULES), beyond, cuda(90))


# --- Tiles ---------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    """Any convolution of a size that a tensor may have, of few enough weights to make quickly."""
    channels, out = draw(st.integers(1, 2048)), draw(st.integers(1, 2048))
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 32, channels) if channels % g == 0]))
    out = -(-out // groups) * groups
    size = draw(st.integers(1, 224))
    kernel = draw(st.sampled_from([k for k in (1, 3, 5, 7) if k <= size + 2 * (k // 2)]))
    batch = draw(st.integers(1, 128))
    assume(batch * max(channels, out) * (size + 8) ** 2 < 2**29)
    assume(out * channels // groups * kernel**2 < 2**20)
    data, bits = draw(st.sampled_from([U4, S4, U8, S8])), draw(st.sampled_from([4, 8]))
    return Conv(
        (batch, channels, size, size), out, (kernel, kernel),
        strides=(draw(st.sampled_from([1, 2])),) * 2, padding=(kernel // 2,) * 4, groups=groups,
        bits=bits, data=data, result=draw(st.sampled_from([U4, U8])),
    )  # fmt: skip


@given(convolutions())
@settings(max_examples=50, deadline=None)
def test_every_layer_has_tiles_that_fit(conv: Conv) -> None:
    layer = layer_of(conv)
    for arch in (75, 80, 89, 90):
        target = cuda(arch)
        space = RULE.space(layer, target)
        assert len({tuple(p.values()) for p in space}) == len(space) > 0
        form, device = mma_form(layer, family_of(target)), device_of(target)
        assert form is not None
        for params in space:
            tile = _tile(params)
            used = resources(tile, form.family, float(form.products))
            assert used.shared <= int(target.attrs["max_shared_memory_per_block"])
            assert 32 <= used.threads <= 1024
            assert tile.bm % tile.wm == tile.bn % tile.wn == 0
        costs = RULE.costs(layer, target, space)
        best = space[int(np.argmin(costs))]
        assert math.isfinite(min(costs))
        assert occupancy(_tile(best), device, float(form.products))


@pytest.mark.parametrize("arch", [75, 80, 90])
def test_parameters_survive_a_tuning_log(arch: int) -> None:
    layer, target = layer_of(OPERANDS["u4 x s4"]), cuda(arch)
    space = RULE.space(layer, target)
    predicted = select([RULE], layer, target)
    assert predicted.source == "predicted"
    other = next(p for p in space if p != predicted.params)
    stored = json.loads(json.dumps(other))
    assert all(type(value) is int for value in stored.values())
    record = Record(f"sm_{arch}", "signature", RULE.name, stored, 1.0, True)
    measured = select([RULE], layer, target, record)
    assert (measured.params, measured.source) == (other, "measured")
    illegal = replace(record, params=stored | {"bm": 48})
    assert select([RULE], layer, target, illegal).source == "predicted"


def _tile(params: Params) -> Tile:
    return Tile(*(int(params[name]) for name in tile_space.NAMES))
