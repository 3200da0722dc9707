"""SplitBias: vanishing filters keep their values, the bias partly in output steps."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.modules import full_range
from tests.relay_passes.builders import Graph, constants, graph
from tvm_q4 import ops
from tvm_q4.errors import NumericsError
from tvm_q4.quant import INT32_MAX, INT32_MIN, dyadic
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.check_overflow import CheckOverflow
from tvm_q4.relay_passes.pipeline import to_integer
from tvm_q4.relay_passes.split_bias import SplitBias

W = np.array([[90, -90, 90], [90, 0, -90], [1, 1, 1]], np.int8).reshape(3, 3, 1, 1)
BIAS = [INT32_MAX - 5, INT32_MIN + 9, 7]
OUT = {"lo": -128, "hi": 127, "dtype": "int8", "zero_point": 4}
RATIOS = (37.4 / 2**31, 2.0**-25, 0.125)


def network(
    ratios: tuple[float, ...] = RATIOS, bias: list[int] = BIAS, offset: list[int] | None = None
) -> tvm.IRModule:
    m, e = zip(*(dyadic(r) for r in ratios), strict=True)

    def build(g: Graph, x: relax.Expr) -> relax.Expr:
        acc = g(ops.conv2d(x, W, bias, name="conv", strides=[1, 1], padding=[0] * 4))
        return g(ops.requantize(acc, m, e, name="conv.out", offset=offset, **OUT))

    return graph(build, dtype="int8")


def emulated(x: np.ndarray, offset: int = 0) -> np.ndarray:
    """In Python integers, which do not overflow; sums of the first channel's weights by hand."""
    sums = np.einsum("oc,nchw->nohw", W[:, :, 0, 0].astype(int), x.astype(int))
    out = np.empty(sums.shape, int)
    for o, (ratio, bias) in enumerate(zip(RATIOS, BIAS, strict=True)):
        m, e = dyadic(ratio)
        steps = [((int(v) + bias) * m + (1 << (e - 1)) >> e) + 4 + offset for v in sums[:, o].flat]
        out[:, o] = np.reshape(np.clip(steps, -128, 127), sums[:, o].shape)
    return out


@pytest.mark.parametrize("offset", [None, [3, 3, 3]])
def test_values_stay_though_nothing_overflows_any_more(offset: list[int] | None) -> None:
    mod = network(offset=offset)
    with pytest.raises(NumericsError, match="conv channel"):
        CheckOverflow(mod)
    after = SplitBias(mod)
    CheckOverflow(after)
    x = full_range(np.random.default_rng(0), "int8", (1, 3, 6, 5))
    found = ReferenceExecutor(after).run(x)
    np.testing.assert_array_equal(found, emulated(x, 3 if offset else 0))
    extra = 3 if offset else 0
    np.testing.assert_array_equal(constants(after, "conv.out")[2], [37 + extra, -64 + extra, extra])
    assert constants(after, "conv")[1][2] == BIAS[2]


def test_a_layer_within_int32_stays_as_it_is() -> None:
    mod = network(bias=[5, 6, 7])
    assert SplitBias(mod).same_as(mod)


def test_a_filter_that_counts_is_refused_as_before() -> None:
    """Weights that can move the result by more than half a step: 270 * 255 * 2**-17 is 0.53."""
    mod = network(ratios=(2.0**-17, 2.0**-25, 0.125))
    after = SplitBias(mod)
    assert constants(after, "conv")[1][0] == BIAS[0]
    with pytest.raises(NumericsError, match="conv channel 0"):
        CheckOverflow(after)


def test_a_layer_with_two_readers_stays_and_is_refused() -> None:
    def build(g: Graph, x: relax.Expr) -> relax.Expr:
        acc = g(ops.conv2d(x, W, BIAS, name="conv", strides=[1, 1], padding=[0] * 4))
        parts = [g(ops.requantize(acc, [2**30], [50 + i], name=f"out{i}", **OUT)) for i in range(2)]
        return g(ops.concat(parts, name="both"))

    mod = graph(build, dtype="int8")
    assert SplitBias(mod).same_as(mod)
    with pytest.raises(NumericsError, match="conv channel 0"):
        CheckOverflow(mod)


def test_a_nearly_vanished_filter_passes_the_pipeline() -> None:
    """Weights of almost no scale beside a bias of a few output steps."""

    def build(g: Graph, x: relax.Expr) -> relax.Expr:
        x = g.qdq(x, "input", 0.0125)
        scale = np.array([1e-8, 0.01, 0.01])
        y = g.conv(x, W, scale, "conv", [(2**31 - 1000) * 1e-8 * 0.0125, 0.5, 0.25])
        return g.qdq(y, "conv.out", 0.05)

    before = graph(build)
    after = to_integer(before)
    x = np.random.default_rng(1).standard_normal((1, 3, 6, 5)).astype(np.float32)
    steps = ReferenceExecutor(after).trace(x)["conv.out"].astype(int)
    assert set(np.unique(steps[:, 0])) == {round((2**31 - 1000) * 1e-8 * 0.0125 / 0.05)}
    assert abs(steps - ReferenceExecutor(before).trace(x)["conv.out"]).max() <= 1
