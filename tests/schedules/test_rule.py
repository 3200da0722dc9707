"""Choice of rule, form and parameters, without compiling anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm.target import Target

from tests.schedules.builders import (
    S8,
    U4,
    U8,
    call_of,
    cpu,
    forced_rules,
    lower,
    module,
    weights,
)
from tvm_q4 import ops
from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import IntRange
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.relay_passes.lower_to_tir import LoweredCall, lower_to_tir
from tvm_q4.schedules.cpu import RULES
from tvm_q4.schedules.rule import select
from tvm_q4.tuning_logs.records import Record

RNG = np.random.default_rng(9)


def _conv(
    mcpu: str = "znver4", data: IntRange = U8, bits: int = 8, out: int = 64, groups: int = 1,
    image: int = 14, channels: int = 64, kernel: int = 3,
) -> LoweredCall:  # fmt: skip
    w = weights(RNG, bits, (out, channels // groups, kernel, kernel))

    def emit(b, x):
        geometry = {"strides": [1, 1], "padding": [kernel // 2] * 4, "groups": groups}
        return b.emit(ops.conv2d(x, w, [0], name="c", weight_bits=bits, **geometry))

    return call_of(lower(module((1, channels, image, image), data, emit), cpu(mcpu)), "conv2d")


@pytest.mark.parametrize(
    ("mcpu", "data", "bits", "form", "executes"),
    [
        ("znver4", U8, 8, "vnni512", "u8s8 vnni512"),
        ("cascadelake", S8, 4, "vnni512", "s8s8 vnni512 (4-bit weights unpacked in registers)"),
        ("alderlake", U8, 8, "vnni256", "u8s8 vnni256"),
        ("haswell", U4, 4, "maddubs", "u8s8 maddubs (4-bit weights unpacked in registers)"),
        ("haswell", U8, 4, "maddubs", "u8s8 maddubs (4-bit weights unpacked in registers)"),
        ("haswell", U8, 8, "madd", "u8s8 madd"),
        ("x86-64", S8, 8, "generic", "s8s8 generic"),
    ],
)
def test_form_of_a_cpu(mcpu: str, data: IntRange, bits: int, form: str, executes: str) -> None:
    call = _conv(mcpu, data, bits)
    params = call.choice.params
    assert (call.choice.rule.name, params["form"]) == ("cpu.direct_conv2d", form)
    assert call.choice.rule.executes_as(call.layer, cpu(mcpu), params) == executes


@pytest.mark.parametrize("mcpu", ["znver4", "haswell", "alderlake", "x86-64"])
@pytest.mark.parametrize(
    "shape",
    [
        {"out": 16, "image": 1, "channels": 3, "kernel": 1},
        {"out": 96, "image": 7},
        {"out": 128, "image": 15, "bits": 4, "data": U4},
        {"out": 64, "groups": 64, "image": 5},
        {"out": 60, "groups": 4, "channels": 20, "image": 9},
    ],
    ids=["pixel", "7x7", "w4u4", "depthwise", "groups"],
)
def test_space_is_legal_and_holds_the_prediction(mcpu: str, shape: dict[str, Any]) -> None:
    call = _conv(mcpu, **shape)
    rule, layer, target = call.choice.rule, call.layer, cpu(mcpu)
    space = rule.space(layer, target)
    assert call.choice.params in space
    assert call.choice.source == ("predicted" if len(space) > 1 else "fallback")
    assert len({tuple(p.items()) for p in space}) == len(space)
    vectors = -(-layer.shape[1] // 16)
    for p in space:
        assert p["tile_h"] <= layer.shape[2]
        assert p["tile_w"] <= layer.shape[3]
        assert vectors % p["blocks"] == 0
        assert rule.predict(layer, target, p) > 0
    best = min(rule.predict(layer, target, p) for p in space)
    assert rule.predict(layer, target, call.choice.params) == best


@pytest.mark.parametrize(("mcpu", "most"), [("znver4", 30), ("alderlake", 7), ("haswell", 7)])
def test_tiles_fit_registers(mcpu: str, most: int) -> None:
    call = _conv(mcpu)
    for p in call.choice.rule.space(call.layer, cpu(mcpu)):
        assert (p["tile_h"] * p["tile_w"] + 1) * p["blocks"] <= most


def test_prediction_prefers_more_work_a_load() -> None:
    call = _conv()
    rule, layer = call.choice.rule, call.layer
    tiny = {"form": "vnni512", "tile_h": 1, "tile_w": 1, "blocks": 1}
    cost = rule.predict(layer, cpu("znver4"), call.choice.params)
    assert cost < rule.predict(layer, cpu("znver4"), tiny)


def test_tuned_parameters_are_taken_where_legal() -> None:
    call = _conv()
    space = call.choice.rule.space(call.layer, cpu("znver4"))
    other = next(p for p in space if p != call.choice.params)

    def choose(rule: str, params: dict[str, Any]):
        record = Record("znver4", call.signature, rule, params, 1.0, checked=True)
        return select(RULES, call.layer, cpu("znver4"), record)

    chosen = choose("cpu.direct_conv2d", other)
    assert (chosen.params, chosen.source) == (other, "measured")
    for rule, params in (
        ("cpu.pool2d", other),
        ("cpu.direct_conv2d", other | {"tile_w": 99}),
    ):
        chosen = choose(rule, params)
        assert (chosen.params, chosen.source) == (call.choice.params, "predicted")


def test_records_are_asked_for_by_signature() -> None:
    asked: list[str] = []

    def tuned(signature: str) -> None:
        asked.append(signature)

    def emit(b, x):
        w = weights(RNG, 8, (16, 16, 1, 1))
        return b.emit(ops.conv2d(x, w, [0], name="c", strides=[1, 1], padding=[0] * 4))

    mod = module((1, 16, 4, 4), U8, emit)
    lowered = lower_to_tir(FuseEpilogue(mod), cpu("x86-64"), list(RULES), tuned)
    assert asked == [c.signature for c in lowered.calls]


def test_layers_no_rule_knows_are_errors() -> None:
    cuda = Target({"kind": "cuda", "arch": "sm_75"})
    layer = _conv().layer
    with pytest.raises(UnsupportedError, match=r"no schedule rule applies to layer 'c' \(conv2d"):
        select(RULES, layer, cuda)


def test_wide_data_have_no_convolution() -> None:
    words = r"layer 'c' \(conv2d of s16 \[.*\) on llvm; quantize its input to 4 or 8 bits"
    with pytest.raises(UnsupportedError, match=words):
        _conv(data=IntRange(-32768, 32767))


def test_concat_along_the_width_has_no_kernel() -> None:
    def emit(b, x):
        return b.emit(ops.concat([x, x], name="joined", axis=3))

    with pytest.raises(UnsupportedError, match=r"no schedule rule applies to layer 'joined'"):
        lower(module((1, 16, 4, 4), U8, emit), cpu("x86-64"))


def test_each_kind_has_its_rule() -> None:
    def emit(b, x):
        half = b.emit(
            ops.max_pool2d(x, name="mp", pool_size=[2, 2], strides=[2, 2], padding=[0] * 4)
        )
        joined = b.emit(ops.concat([half, half], name="joined"))
        return b.emit(ops.requantize(joined, [1], [1], name="r", lo=0, hi=255, dtype="uint8"))

    lowered = lower(module((1, 16, 4, 4), U8, emit), cpu("x86-64"))
    assert [(c.layer.kind, c.choice.rule.name) for c in lowered.calls] == [
        ("gather", "cpu.gather"), ("max_pool2d", "cpu.pool2d"), ("concat", "cpu.concat"),
        ("elementwise", "cpu.elementwise"), ("gather", "cpu.gather"),
    ]  # fmt: skip
    for call in lowered.calls:
        (params,) = call.choice.rule.space(call.layer, cpu("x86-64"))
        assert call.choice.rule.predict(call.layer, cpu("x86-64"), params) > 0
        assert call.choice.source == "fallback"
        assert (
            call.choice.rule.executes_as(call.layer, cpu("x86-64"), params) == call.choice.rule.name
        )


def test_forced_rules_keep_other_layers() -> None:
    assert [r.name for r in forced_rules(tile_w=1)] == [r.name for r in RULES]
