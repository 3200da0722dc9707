"""Convolution kernels against the reference executor, over geometries and dot-product forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schedules.builders import (
    FORM_CPUS,
    S4,
    S8,
    U4,
    U8,
    Batch,
    call_of,
    check,
    forced_rules,
    form_target,
    full_range,
    host,
    lower,
    module,
    requantized,
    weights,
)
from tvm_q4 import ops
from tvm_q4.quant import IntRange

RNG = np.random.default_rng(20)


@dataclass(frozen=True)
class Conv:
    """One convolution; its result is the int32 accumulator, so that nothing hides a wrong bit."""

    shape: tuple[int, int, int, int]
    out: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bits: int = 8
    data: IntRange = U8
    zero: int = 0

    def weight(self, extreme: bool = False) -> np.ndarray:
        """Weights over their whole range; with `extreme` also channels of one bound alone."""
        shape = (self.out, self.shape[1] // self.groups, *self.kernel)
        w = weights(RNG, self.bits, shape)
        if extreme:
            w[0], w[-1] = -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return w

    def module(self, extreme: bool = False) -> tvm.IRModule:
        w = self.weight(extreme)
        bias = RNG.integers(-(2**20), 2**20, self.out)
        return module(
            self.shape,
            self.data,
            lambda b, x: b.emit(
                ops.conv2d(
                    x,
                    w,
                    bias,
                    name="c",
                    strides=self.strides,
                    padding=self.padding,
                    dilation=self.dilation,
                    groups=self.groups,
                    zero_point=self.zero,
                    weight_bits=self.bits,
                )
            ),
        )

    def inputs(self) -> list[np.ndarray]:
        """The whole range at random, and each bound everywhere."""
        bounds = [np.full(self.shape, v, self.data.dtype) for v in (self.data.lo, self.data.hi)]
        return [full_range(RNG, self.data, self.shape), *bounds]


GEOMETRIES = {
    "1x1": Conv((1, 20, 9, 7), 33),
    "3x3": Conv((1, 16, 11, 9), 32, (3, 3), padding=(1, 1, 1, 1)),
    "1x7": Conv((1, 12, 8, 13), 16, (1, 7), padding=(0, 3, 0, 3)),
    "7x1": Conv((1, 12, 13, 8), 16, (7, 1), padding=(3, 0, 3, 0)),
    "5x5": Conv((1, 7, 9, 9), 10, (5, 5), padding=(2, 2, 2, 2)),
    "stem 7x7": Conv((1, 3, 23, 19), 24, (7, 7), (2, 2), (3, 3, 3, 3)),
    "stem 6 channels": Conv((1, 6, 9, 9), 16, (3, 3), padding=(1, 1, 1, 1)),
    "one channel": Conv((1, 1, 6, 5), 1, (3, 3), padding=(1, 1, 1, 1)),
    "one pixel": Conv((1, 40, 1, 1), 17),
    "one pixel a row": Conv((2, 24, 5, 1), 16, (3, 1), padding=(1, 0, 1, 0)),
    "window of all": Conv((1, 20, 5, 4), 18, (5, 4)),
    "batch": Conv((3, 20, 6, 5), 33, (3, 3), padding=(1, 1, 1, 1)),
    "batch of pixels": Conv((5, 24, 1, 1), 40),
    "padded pixel": Conv((2, 16, 1, 1), 16, (1, 1), (2, 2), (1, 1, 0, 0)),
    "stride 2": Conv((1, 16, 11, 10), 32, (3, 3), (2, 2), (1, 1, 1, 1)),
    "stride 3x1": Conv((1, 16, 11, 10), 16, (2, 3), (3, 1)),
    "1x1 stride 2": Conv((1, 32, 9, 9), 16, (1, 1), (2, 2)),
    "asymmetric padding": Conv((1, 16, 7, 6), 16, (3, 3), padding=(2, 0, 1, 3)),
    "dilation": Conv((1, 16, 13, 14), 16, (3, 3), padding=(2, 3, 2, 3), dilation=(2, 3)),
    "depthwise": Conv((1, 24, 8, 7), 24, (3, 3), padding=(1, 1, 1, 1), groups=24),
    "depthwise, 3 a channel": Conv((1, 16, 6, 7), 48, (3, 3), padding=(1, 1, 1, 1), groups=16),
    "groups of 4": Conv((1, 32, 6, 7), 32, (3, 3), padding=(1, 1, 1, 1), groups=8),
    "groups of 24": Conv((1, 30, 6, 7), 48, (3, 3), padding=(1, 1, 1, 1), groups=2),
    "groups of 16, 5 each": Conv((1, 20, 6, 7), 64, (1, 1), groups=4),
    "groups of 32": Conv((1, 64, 5, 5), 64, (3, 3), padding=(1, 1, 1, 1), groups=2),
    "groups of 12": Conv((1, 36, 5, 5), 36, (3, 3), padding=(1, 1, 1, 1), groups=3),
}
OPERANDS = {
    "w8 u8": (8, U8, 0), "w8 s8": (8, S8, 0), "w8 s8 zero -128": (8, S8, -128),
    "w4 u4": (4, U4, 0), "w4 s4": (4, S4, 0), "w4 u8": (4, U8, 0), "w4 s8 zero 5": (4, S8, 5),
    "w8 u4": (8, U4, 3), "w4 u4 zero 15": (4, U4, 15), "w8 u7": (8, IntRange(0, 127), 0),
}  # fmt: skip
SMALL = {"tile_h": 1, "tile_w": 2, "blocks": 1}


def _with(conv: Conv, operands: str) -> Conv:
    bits, data, zero = OPERANDS[operands]
    return replace(conv, bits=bits, data=data, zero=zero)


GEOMETRY_CASES = {
    f"{name}, {operands}": _with(conv, operands)
    for i, (name, conv) in enumerate(GEOMETRIES.items())
    for operands in (["w8 s8 zero -128", "w4 u4"], ["w8 u8", "w4 s8 zero 5"])[i % 2]
}


@pytest.fixture(scope="module")
def geometries() -> Batch:
    batch = Batch()
    for name, conv in GEOMETRY_CASES.items():
        batch.add(name, conv.module())
    return batch


@pytest.mark.parametrize("name", GEOMETRY_CASES)
def test_geometries(geometries: Batch, name: str) -> None:
    geometries.check(name, GEOMETRY_CASES[name].inputs()[0])


FORM_CONV = Conv((1, 24, 5, 4), 20, (2, 3), (1, 1), (1, 1, 0, 1))


def _fits(form: str, operands: str) -> bool:
    bits, data, _ = OPERANDS[operands]
    top = 255 if data.signed else data.hi
    return form != "maddubs" or 2 * top * (1 << (bits - 1)) <= 32767


FORM_CASES = [(f, operands) for f in FORM_CPUS for operands in OPERANDS if _fits(f, operands)]


@cache
def form_batch(form: str) -> Batch:
    batch = Batch(form_target(form))
    for _, operands in (case for case in FORM_CASES if case[0] == form):
        mod = _with(FORM_CONV, operands).module(extreme=True)
        lowered = batch.add(operands, mod, forced_rules(form=form, **SMALL))
        assert call_of(lowered, "conv2d").choice.params["form"] == form
    return batch


@pytest.mark.parametrize(("form", "operands"), FORM_CASES)
def test_every_form_at_its_extremes(form: str, operands: str) -> None:
    form_batch(form).check(operands, *_with(FORM_CONV, operands).inputs())


@pytest.mark.parametrize("form", FORM_CPUS)
def test_predicted_tiles_of_every_form(form: str) -> None:
    conv = Conv((1, 32, 15, 13), 48, (3, 3), (1, 1), (1, 1, 1, 1), bits=4, data=U4)
    rules = forced_rules(form=form)
    check(conv.module(extreme=True), *conv.inputs(), target=form_target(form), rules=rules)


def _tiles(conv: Conv, count: int) -> list[dict[str, int | str]]:
    call = call_of(lower(conv.module(), host()), "conv2d")
    space = call.choice.rule.space(call.layer, host())
    return [space[i] for i in np.linspace(0, len(space) - 1, count).astype(int)]


@pytest.mark.parametrize("operands", ["w8 s8", "w4 u8"])
def test_tiles_beyond_the_predicted_one(operands: str) -> None:
    conv = _with(Conv((2, 16, 9, 17), 96, (3, 3), (1, 1), (1, 1, 1, 1)), operands)
    batch = Batch()
    names = {"_".join(map(str, p.values())): p for p in _tiles(conv, 7)}
    assert len(names) == 7
    for name, params in names.items():
        lowered = batch.add(name, conv.module(), forced_rules(**params))
        assert call_of(lowered, "conv2d").choice.params == params
    for name in names:
        batch.check(name, conv.inputs()[0])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORM_CPUS)
def test_many_tiles_of_every_form(form: str) -> None:
    conv = _with(Conv((2, 16, 9, 17), 96, (3, 3), (1, 1), (1, 1, 1, 1)), "w4 u4")
    batch = Batch(form_target(form))
    for i, params in enumerate(_tiles(conv, 40)):
        batch.add(f"t{i}", conv.module(), forced_rules(**(params | {"form": form})))
    for name in batch.modules:
        batch.check(name, conv.inputs()[0])


def test_padding_channels_of_narrow_images_are_not_read() -> None:
    conv = Conv((2, 3, 8, 9), 16, (3, 3), (1, 1), (1, 1, 1, 1), data=S8, zero=-7)
    lowered = check(conv.module(), *conv.inputs())
    layout = call_of(lowered, "conv2d").layer.data.layout
    assert (layout.channels, layout.halo) == (4, (1, 1, 1, 1))


def test_deep_sums_of_four_bit_weights_are_exact() -> None:
    # 16 times the sum would pass 2^31: the nibbles are then sign-extended instead.
    conv = Conv((1, 66000, 1, 1), 16, bits=4, data=U8)
    lowered = check(conv.module(extreme=True), *conv.inputs())
    assert call_of(lowered, "conv2d").layer.ops[0].attrs["weight_bits"] == 4


def test_two_convolutions_read_one_tensor_with_different_halos() -> None:
    w3, w5 = weights(RNG, 8, (16, 16, 3, 3)), weights(RNG, 8, (16, 16, 5, 5))

    def emit(b, x):
        a = b.emit(ops.conv2d(x, w3, [7], name="a", strides=[1, 1], padding=[1] * 4, zero_point=9))
        y = requantized(b, a, RNG, name="a.out", zero_point=9)
        one = ops.conv2d(y, w3, [0], name="c3", strides=[2, 2], padding=[1, 1, 0, 0], zero_point=9)
        two = ops.conv2d(y, w5, [0], name="c5", strides=[2, 2], padding=[0, 2, 3, 2], zero_point=9)
        left, right = b.emit(one), b.emit(two)
        form = {"form": "two_sided", "lo": -(2**31), "hi": 2**31 - 1, "dtype": "int32"}
        return b.emit(ops.add(left, right, [1], [1], [1], [1], name="sum", **form))

    lowered = check(module((1, 16, 8, 8), U8, emit), full_range(RNG, U8, (1, 16, 8, 8)))
    halos = {call.layer.name: call.layer.outputs[0][1].layout.halo for call in lowered.calls}
    assert halos["a"] == (1, 2, 3, 2)


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    """Any convolution that the operators allow, small."""
    groups = draw(st.sampled_from([1, 1, 2, 3, 4, 8]))
    channels = groups * draw(st.integers(1, 12))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [spans[i] - padding[i] - padding[i + 2] for i in (0, 1)]
    size = [draw(st.integers(max(1, n), max(1, n) + 12)) for n in least]
    bits, data = draw(st.sampled_from([(8, U8), (8, S8), (4, U4), (4, S4), (4, U8), (4, S8)]))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    shape, out = (draw(st.integers(1, 3)), channels, *size), groups * draw(st.integers(1, 20))
    zero = draw(st.integers(data.lo, data.hi))
    return Conv(shape, out, kernel, strides, padding, dilation, groups, bits, data, zero)


RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(RANDOM, max_examples=25)
@given(convolutions())
def test_random_convolutions(conv: Conv) -> None:
    check(conv.module(), *conv.inputs())


@pytest.mark.slow
@pytest.mark.parametrize("form", FORM_CPUS)
@settings(RANDOM, max_examples=100)
@given(conv=convolutions())
def test_many_random_convolutions(form: str, conv: Conv) -> None:
    if form == "maddubs" and conv.bits == 8 and conv.data != U4:
        form = "madd"
    rules = forced_rules(form=form)
    check(conv.module(extreme=True), *conv.inputs(), target=form_target(form), rules=rules)
