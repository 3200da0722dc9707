"""DropDeadChannels: channels beyond int32 that no reader tells from zero are zeroed, others not."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.modules import full_range
from tests.relay_passes.builders import Graph, constants, graph
from tvm_q4 import ops
from tvm_q4.errors import NumericsError
from tvm_q4.quant import INT32_MAX
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.check_overflow import CheckOverflow
from tvm_q4.relay_passes.drop_dead_channels import DropDeadChannels
from tvm_q4.relay_passes.pipeline import to_integer

W = np.array([[90, -90, 90], [90, 0, -90], [1, 1, 1]], np.int8).reshape(3, 3, 1, 1)
BIAS = [INT32_MAX - 5, -INT32_MAX, 7]
OUT = {"lo": -128, "hi": 127, "dtype": "int8", "zero_point": 4}
DEAD = ([0, 0, 2**30], [1, 1, 33])
ALIVE = ([0, 2**30, 2**30], [1, 62, 33])


def conv(g: Graph, x: relax.Expr, w: np.ndarray = W, bias: list[int] = BIAS) -> relax.Var:
    return g(ops.conv2d(x, w, bias, name="conv", strides=[1, 1], padding=[0] * 4))


def dropped() -> tuple[np.ndarray, list[int]]:
    return np.where(np.arange(3).reshape(3, 1, 1, 1) < 2, np.int8(0), W), [0, 0, 7]


def requantized(m: list[int], e: list[int], **parts: object) -> tvm.IRModule:
    return graph(
        lambda g, x: g(ops.requantize(conv(g, x, **parts), m, e, name="conv.out", **OUT)),
        dtype="int8",
    )


def added(m: list[int], e: list[int], **parts: object) -> tvm.IRModule:
    def build(g: Graph, x: relax.Expr) -> relax.Expr:
        acc = conv(g, x, **parts)
        return g(ops.add(acc, x, m, e, [2**30], [31], name="add", form="two_sided", **OUT))

    return graph(build, dtype="int8")


@pytest.mark.parametrize("reader", [requantized, added])
def test_channels_that_are_multiplied_by_zero_become_zero(reader) -> None:
    w, bias = dropped()
    after = DropDeadChannels(reader(*DEAD))
    tvm.ir.assert_structural_equal(after, reader(*DEAD, w=w, bias=bias))
    CheckOverflow(after)
    x = full_range(np.random.default_rng(0), "int8", (1, 3, 6, 5))
    found = ReferenceExecutor(after).run(x)
    if reader is requantized:
        assert (found[:, :2] == 4).all() and (found[:, 2] != 4).any()


def test_a_channel_that_some_reader_takes_stays_and_is_refused() -> None:
    mod = requantized(*ALIVE)
    after = DropDeadChannels(mod)
    np.testing.assert_array_equal(constants(after, "conv")[1], [0, -INT32_MAX, 7])
    with pytest.raises(NumericsError, match="conv channel 1"):
        CheckOverflow(after)

    def build(g: Graph, x: relax.Expr) -> relax.Expr:
        acc = conv(g, x)
        g(ops.requantize(acc, *DEAD, name="conv.out", **OUT))
        return acc

    returned = graph(build, dtype="int8")
    assert DropDeadChannels(returned).same_as(returned)


def test_channels_that_cannot_overflow_stay_as_they_are() -> None:
    mod = requantized(*DEAD, bias=[9, INT32_MAX - 3 * 90 * 255, 7])
    assert DropDeadChannels(mod).same_as(mod)


def test_a_vanished_filter_does_not_stop_the_pipeline() -> None:
    """What ONNX Runtime's quantizer writes: a bias just inside int32, at a scale of almost 0."""

    def build(g: Graph, x: relax.Expr) -> relax.Expr:
        x = g.qdq(x, "input", 0.0125)
        scale = np.array([1e-15, 0.01, 0.01])
        y = g.conv(x, W, scale, "conv", [(2**31 - 1000) * 1e-15 * 0.0125, 0.5, 0.25])
        return g.qdq(y, "conv.out", 0.05)

    before = graph(build)
    after = to_integer(before)
    x = np.random.default_rng(1).standard_normal((1, 3, 6, 5)).astype(np.float32)
    steps = ReferenceExecutor(after).trace(x)["conv.out"].astype(int)
    assert (steps[:, 0] == 0).all()
    assert abs(steps - ReferenceExecutor(before).trace(x)["conv.out"]).max() <= 1
