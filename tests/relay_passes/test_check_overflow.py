"""CheckOverflow: bounds at the edge of int32 and int64, one step inside and one step beyond."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.relay_passes.builders import Graph, graph
from tvm_q4 import ops
from tvm_q4.errors import NumericsError
from tvm_q4.meta import with_meta
from tvm_q4.quant import INT32_MAX, INT32_MIN
from tvm_q4.relay_passes.check_overflow import CheckOverflow

FULL = {"lo": INT32_MIN, "hi": INT32_MAX, "dtype": "int32"}
EIGHT = {"lo": -128, "hi": 127, "dtype": "int8"}


def passes(mod: tvm.IRModule) -> None:
    assert CheckOverflow(mod).same_as(mod)


def fails(mod: tvm.IRModule, *parts: str) -> None:
    with pytest.raises(NumericsError) as error:
        CheckOverflow(mod)
    for part in parts:
        assert part in str(error.value)


def conv(g: Graph, x: relax.Expr, bias: list[int], zero: int = 0) -> relax.Var:
    """Two channels of weights that sum up, in absolute value, to 300 and 200."""
    w = np.array([[100, -100, 100], [100, 0, -100]], np.int8).reshape(2, 3, 1, 1)
    call = ops.conv2d(
        x, w, bias, name="layer3.1.conv2", strides=[1, 1], padding=[0] * 4, zero_point=zero
    )
    return g(call)


@pytest.mark.parametrize(
    ("dtype", "largest"), [("uint8", 255), ("int8", 255), ("int16", 32768)], ids=str
)
def test_accumulator(dtype: str, largest: int) -> None:
    """Signed 8-bit data count as 255, since CPU kernels shift them by 128."""
    bias = INT32_MAX - 200 * largest

    def build(extra: int) -> tvm.IRModule:
        return graph(lambda g, x: conv(g, x, [-5, -bias - extra]), dtype=dtype)

    passes(build(0))
    fails(build(1), "layer3.1.conv2 channel 1", str(INT32_MAX + 1), "int32")


def test_accumulator_of_four_bit_data_uses_the_declared_range() -> None:
    def build(extra: int) -> tvm.IRModule:
        mod = graph(lambda g, x: conv(g, x, [INT32_MAX - 300 * 15 + extra, 0]), dtype="uint8")
        return with_meta(mod, input_range=[0, 15])

    passes(build(0))
    fails(build(1), "channel 0")


def test_padding_with_a_zero_point_beyond_the_range_counts() -> None:
    def build(zero: int) -> tvm.IRModule:
        mod = graph(lambda g, x: conv(g, x, [INT32_MAX - 300 * 20, 0], zero), dtype="uint8")
        return with_meta(mod, input_range=[0, 15])

    passes(build(20))
    fails(build(21), "channel 0")


def test_sum_of_an_average_pool() -> None:
    def build(size: int) -> tvm.IRModule:
        def inner(g, x):
            call = ops.avg_pool2d(
                x,
                name="avgpool",
                pool_size=[size, 1],
                strides=[1, 1],
                padding=[0] * 4,
                zero_point=-100,
            )
            return g(call)

        return graph(inner, (1, 1, 40000, 1), "int16")

    limit = INT32_MAX // (32767 + 100)
    assert limit > 1
    mod = graph(
        lambda g, x: g(
            ops.avg_pool2d(
                x,
                name="avgpool",
                pool_size=[65536, 1],
                strides=[1, 1],
                padding=[0] * 4,
                zero_point=-100,
            )
        ),
        (1, 1, 65536, 1),
        "int16",
    )
    passes(build(40000))
    fails(mod, "avgpool", "the sum of a window")


def _residual(form: str, m1: int, e1: int, m2: int, e2: int, out: dict, bias: int = 0, **kw):
    def build(g, x):
        acc = conv(g, x, [0, bias])
        skip = g(ops.requantize(acc, 2**30, 40, name="skip", **EIGHT))
        return g(ops.add(acc, skip, m1, e1, m2, e2, name="layer3.1.add", form=form, **out, **kw))

    return graph(build, dtype="uint8")


def test_accumulator_form_adds_the_other_operands_bound() -> None:
    room = INT32_MAX - 200 * 255
    skip = (128 * 1000 >> 3) + 1
    passes(_residual("accumulator", 1, 0, 1000, 3, FULL, room - skip - 1))
    fails(
        _residual("accumulator", 1, 0, 1000, 3, FULL, room - skip),
        "layer3.1.add channel 1", "the sum of both sides",
    )  # fmt: skip


def test_accumulator_form_is_checked_although_a_clamp_follows() -> None:
    out = {"lo": 0, "hi": INT32_MAX, "dtype": "int32"}
    fails(_residual("accumulator", 1, 0, 2**30, 8, out, INT32_MAX - 200 * 255), "channel 1")


def test_two_sided_form_bounds_both_scaled_sides() -> None:
    """2^17 accumulator steps, 51000 of them from the weights, make 2^31 with a ratio of 2^14."""
    bias = 2**17 - 200 * 255
    passes(_residual("two_sided", 2**30, 16, 2**30, 30, EIGHT, 1 - bias))
    fails(_residual("two_sided", 2**30, 16, 2**30, 30, EIGHT, -bias), "layer3.1.add channel 1")


def test_fused_form_has_63_bits() -> None:
    acc = 300 * 255

    def build(m1: int) -> tvm.IRModule:
        return _residual("fused", m1, 62, 2**31 - 1, 62, EIGHT)

    passes(build(2**31 - 1))
    big = graph(
        lambda g, x: g(
            ops.add(x, x, 2**31 - 1, 62, 2**31 - 1, 62, name="both", form="fused", **EIGHT)
        ),
        dtype="int32",
    )
    fails(big, "both", "the sum of both products", "two_sided")
    assert acc * (2**31 - 1) < 2**62


def test_requantization_without_a_clamp_must_fit() -> None:
    def build(shift: int) -> tvm.IRModule:
        return graph(
            lambda g, x: g(ops.requantize(x, 2**30, shift, name="wide", **FULL)), dtype="int16"
        )

    passes(build(15))
    fails(build(14), "wide channel 0", "without a clamp")


def test_bound_goes_through_pools_and_movement() -> None:
    def build(bias: int) -> tvm.IRModule:
        def inner(g, x):
            acc = conv(g, x, [bias, 0])
            pooled = g(
                ops.max_pool2d(acc, name="p", pool_size=[2, 2], strides=[2, 2], padding=[0] * 4)
            )
            flat = g(relax.op.reshape(pooled, [1, -1]))
            return g(ops.requantize(flat, 2**30, 29, name="double", **FULL))

        return graph(inner, dtype="uint8")

    half = INT32_MAX // 2 - 300 * 255
    passes(build(half - 1))
    fails(build(half + 1), "double")
