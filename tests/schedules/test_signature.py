"""Signatures: equal where the kernel is the same, different where what decides it differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tests.modules import module as tensor_module
from tests.schedules.builders import S8, U4, U8, call_of, cpu, lower, module, weights
from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.schedules.signature import kernel_name

Change = dict[str, Any]


def _signatures(mod: tvm.IRModule, kind: str) -> str:
    return call_of(lower(mod, cpu("x86-64")), kind).signature


def _conv(**change: Any) -> str:
    c = {
        "shape": (1, 16, 6, 6),
        "data": U8,
        "dtype": None,
        "out": 16,
        "kernel": (3, 3),
        "seed": 0,
        "bits": 8,
        "strides": [1, 1],
        "padding": [1] * 4,
        "dilation": [1, 1],
        "groups": 1,
        "zero": 0,
        "m": 3,
        "e": 5,
        "requantize": {},
    } | change
    rng = np.random.default_rng(c["seed"])
    w = weights(rng, c["bits"], (c["out"], c["shape"][1] // c["groups"], *c["kernel"]))
    bias = rng.integers(-9, 9, c["out"])

    def emit(b, x):
        conv = ops.conv2d(
            x, w, bias, name=f"c{c['seed']}", strides=c["strides"], padding=c["padding"],
            dilation=c["dilation"], groups=c["groups"], zero_point=c["zero"], weight_bits=c["bits"],
        )  # fmt: skip
        how = {"lo": 0, "hi": 255, "dtype": "uint8"} | c["requantize"]
        return b.emit(ops.requantize(b.emit(conv), c["m"], c["e"], name="y", **how))

    return _signatures(module(c["shape"], c["data"], emit, c["dtype"]), "conv2d")


def test_constants_do_not_enter() -> None:
    assert _conv() == _conv(seed=1) == _conv(m=[5] * 16, e=[7] * 16)


def test_readable() -> None:
    assert _conv() == (
        "conv2d n1 c16 6x6 o16 k3x3 s1x1 p1,1,1,1 d1x1 g1 w8"
        " | %1=requantize(%0) z0>z0 half_up m32 [0,255] | u8:NHWC16h1,1,1,1 -> %1:u8:NHWC16"
    )


CHANGES: dict[str, Change] = {
    "batch": {"shape": (2, 16, 6, 6)},
    "height": {"shape": (1, 16, 7, 6)},
    "channels": {"shape": (1, 15, 6, 6)},
    "out": {"out": 15},
    "kernel": {"kernel": (1, 3)},
    "strides": {"strides": [2, 1]},
    "padding": {"padding": [1, 1, 1, 0]},
    "dilation": {"dilation": [1, 2]},
    "groups": {"groups": 2},
    "weight bits": {"bits": 4},
    "signed data": {"data": S8},
    "data bits": {"data": U4},
    "seven-bit data": {"data": IntRange(0, 127)},
    "container": {"dtype": "int8", "data": U4},
    "rounding": {"requantize": {"rounding": "half_away"}},
    "zero point": {"requantize": {"zero_point": 1}},
    "operand's zero point": {"requantize": {"in_zero_point": 1}},
    "clamp": {"requantize": {"lo": 1}},
    "output type": {"requantize": {"lo": -128, "hi": 127, "dtype": "int8"}},
    "output container": {"requantize": {"dtype": "int16"}},
    "offset": {"requantize": {"offset": np.arange(16)}},
    "product width": {"m": 2**30, "e": 40},
    "ratios by position": {"m": np.ones((1, 1, 6, 6), np.int32)},
    "shifts by position": {"e": np.ones((1, 1, 6, 6), np.int32)},
    "ratios by channel and position": {"m": np.ones((1, 16, 6, 6), np.int32)},
}


def test_everything_that_decides_a_kernel_enters() -> None:
    found = {name: _conv(**change) for name, change in CHANGES.items()} | {"none": _conv()}
    assert len(set(found.values())) == len(found)


def test_four_bits_in_another_container() -> None:
    assert _conv(data=U4) != _conv(data=U4, dtype="int8")


def _pool(**change: Any) -> str:
    a = {"pool_size": [2, 2], "strides": [2, 2], "padding": [0] * 4} | change
    return _signatures(
        module((1, 16, 6, 6), U8, lambda b, x: b.emit(ops.avg_pool2d(x, name="p", **a))),
        "avg_pool2d",
    )


def test_pools() -> None:
    changes: list[Change] = [
        {},
        {"pool_size": [2, 3]},
        {"strides": [1, 2]},
        {"padding": [1, 0, 0, 0]},
        {"ceil_mode": True},
        {"count_include_pad": False},
        {"rounding": "truncate"},
        {"rounding": "nearest"},
        {"zero_point": 3},
    ]
    assert len({_pool(**c) for c in changes}) == len(changes)


def _quantize(**change: Any) -> str:
    a = {"qmin": -128, "qmax": 127, "dtype": "int8", "zero_point": 0, "scale": 0.1} | change
    scale, zero = a.pop("scale"), a.pop("zero_point")
    mod = tensor_module(
        (1, 3, 6, 6), "float32", lambda b, x: b.emit(ops.quantize(x, scale, zero, name="q", **a))
    )
    return _signatures(mod, "quantize")


def test_quantizers() -> None:
    changes: list[Change] = [
        {}, {"qmin": -127}, {"qmax": 7}, {"zero_point": 3}, {"form": "divide"},
        {"form": "mul_div", "numerator": 255.0}, {"form": "mul_div", "numerator": 127.0},
        {"form": "mul_div", "numerator": 255.0, "denominator": 2.0}, {"dtype": "int16"},
    ]  # fmt: skip
    assert len({_quantize(**c) for c in changes}) == len(changes)
    assert _quantize(scale=0.1) == _quantize(scale=0.2)


def _concat(channels: tuple[int, int], order: tuple[int, ...]) -> str:
    def emit(b, x):
        parts = [
            b.emit(
                ops.conv2d(
                    x,
                    np.ones((c, 8, 1, 1), np.int8),
                    [0],
                    name=f"c{i}",
                    strides=[1, 1],
                    padding=[0] * 4,
                )
            )
            for i, c in enumerate(channels)
        ]
        return b.emit(ops.concat([parts[i] for i in order], name="joined"))

    return _signatures(module((1, 8, 4, 4), U8, emit), "concat")


def test_concats() -> None:
    cases = [
        ((16, 20), (0, 1)),
        ((16, 24), (0, 1)),
        ((20, 16), (0, 1)),
        ((16, 16), (0, 1, 0)),
        ((16, 16), (0, 1, 1)),
    ]
    assert len({_concat(*case) for case in cases}) == len(cases)


def _gather(build: Callable[[relax.Var], relax.Expr]) -> str:
    def emit(b, x):
        y = b.emit(ops.requantize(x, [1], [0], name="y", lo=0, hi=255, dtype="uint8"))
        moved = b.emit(build(y))
        return b.emit(ops.requantize(moved, [1], [0], name="z", lo=0, hi=255, dtype="uint8"))

    calls = lower(module((1, 16, 8, 8), U8, emit), cpu("x86-64")).calls
    (signature,) = [c.signature for c in calls if c.layer.name.startswith("y.")]
    return signature


def test_gathers() -> None:
    builds = [
        lambda y: relax.op.strided_slice(y, [2, 3], [0, 0], [8, 8], [2, 2]),
        lambda y: relax.op.strided_slice(y, [2, 3], [1, 0], [8, 8], [2, 2]),
        lambda y: relax.op.strided_slice(y, [2, 3], [0, 0], [4, 4]),
        lambda y: relax.op.strided_slice(y, [2, 3], [0, 0], [4, 3]),
        lambda y: relax.op.nn.pad(y, [0, 0, 0, 0, 1, 1, 1, 1], "constant", 0),
        lambda y: relax.op.nn.pad(y, [0, 0, 0, 0, 1, 1, 1, 1], "constant", 5),
        lambda y: relax.op.nn.pad(y, [0, 0, 0, 0, 0, 2, 0, 2], "constant", 5),
    ]
    assert len({_gather(build) for build in builds}) == len(builds)


def test_plain_results_state_their_rank() -> None:
    def logits(rank: int) -> str:
        def emit(b, x):
            how = {"name": "y", "qmin": -128, "qmax": 127}
            return b.emit(ops.dequantize(x, 0.5, 0, **how))

        shape = (2, 10, 1, 1)[:rank]
        return _signatures(module(shape, S8, emit), "elementwise")

    assert logits(2) != logits(4)


def test_kernel_names_follow_signatures() -> None:
    def emit(b, x):
        return b.emit(
            ops.conv2d(x, np.ones((4, 8, 1, 1)), [0], name="c", strides=[1, 1], padding=[0] * 4)
        )

    layer = call_of(lower(module((1, 8, 4, 4), U8, emit), cpu("x86-64")), "conv2d").layer
    name = kernel_name(layer, "one")
    assert name.startswith("q4_conv2d_n1c8h4w4_")
    assert name != kernel_name(layer, "two")
    assert name.isidentifier()
