"""QdqToInteger: pools, concatenation and data movement."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.relay_passes.builders import (
    constants,
    float_ops,
    graph,
    named,
    op_names,
    weights,
)
from tests.relay_passes.example_layer import (
    BIAS,
    RNG,
    S_IN,
    S_OUT,
    S_W,
    Z_IN,
    W,
    check,
    int_conv,
    requantized,
)
from tvm_q4 import ops
from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import dyadic_array
from tvm_q4.relay_passes.qdq_to_integer import QdqToInteger


def test_max_pool_of_a_convolution_runs_on_the_quantized_tensor() -> None:
    def before(g, x):
        c = g.relu(g.conv(g.qdq(x, "input", S_IN, zero=Z_IN), W, S_W, "conv1", BIAS, padding=1))
        p = g(relax.op.nn.max_pool2d(c, [3, 3], [2, 2], [1, 1, 1, 1]))
        return g.qdq(p, "maxpool.out", S_OUT, signed=False)

    def expected(g, x):
        acc = int_conv(g, g.q(x, "input", S_IN, zero=Z_IN))
        q = requantized(g, acc, "conv1.out", S_OUT, 0, 255, dtype="uint8")
        p = ops.max_pool2d(q, name="maxpool.out", pool_size=[3, 3], strides=[2, 2], padding=[1] * 4)
        return g.dq(g(p), "maxpool.out", S_OUT, signed=False)

    check(graph(before), graph(expected))


def test_max_pool_of_a_narrow_tensor_runs_before_a_wider_requantization() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN, bits=4)
        return g.qdq(g(relax.op.nn.max_pool2d(a, [2, 2])), "out", S_OUT, bits=8)

    assert op_names(QdqToInteger(graph(build)))[1:3] == ["q4.max_pool2d", "q4.requantize"]


def test_average_pool_is_a_sum_whose_division_joins_the_ratio() -> None:
    def before(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        pooled = g(relax.op.nn.avg_pool2d(a, [3, 2], [3, 2]))
        return g.qdq(pooled, "avgpool.out", S_OUT)

    def expected(g, x):
        q = g.q(x, "input", S_IN, zero=Z_IN)
        # relax's avg_pool2d does not count padding unless it is told to
        total = g(
            ops.avg_pool2d(
                q, name="lv2", pool_size=[3, 2], strides=[3, 2], padding=[0] * 4, zero_point=Z_IN,
                count_include_pad=False,
            )
        )  # fmt: skip
        m, e = dyadic_array(S_IN / 6 / S_OUT)
        out = g(ops.requantize(total, m, e, name="avgpool.out", lo=-128, hi=127, dtype="int8"))
        return g.dq(out, "avgpool.out", S_OUT)

    check(graph(before), graph(expected))


@pytest.mark.parametrize("size", [(6, 4), (7, 5), (1, 1)])
def test_adaptive_average_and_mean_are_global_sums(size: tuple[int, int]) -> None:
    def build(op):
        def inner(g, x):
            a = g.qdq(x, "input", S_IN)
            return g.qdq(g(op(a)), "out", S_OUT)

        return QdqToInteger(graph(inner, (1, 3, *size)))

    one = build(lambda a: relax.op.nn.adaptive_avg_pool2d(a, [1, 1]))
    two = build(lambda a: relax.op.mean(a, [2, 3], True))
    assert op_names(one) == op_names(two)
    (pool,) = (c for c in named(one).values() if ops.is_q4(c, "avg_pool2d"))
    assert ops.ints(pool.attrs["pool_size"]) == list(size)


def test_adaptive_average_of_unequal_bins_stays_float() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN)
        return g.qdq(g(relax.op.nn.adaptive_avg_pool2d(a, [4, 4])), "out", S_OUT)

    assert float_ops(QdqToInteger(graph(build))) == ["relax.nn.adaptive_avg_pool2d"]


def test_concat_requantizes_each_branch_to_the_output_scale() -> None:
    def before(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        c = g.conv(a, W, S_W, "conv1", BIAS, padding=1)
        return g.qdq(g(relax.op.concat([c, a], 1)), "cat", S_OUT)

    def expected(g, x):
        q = g.q(x, "input", S_IN, zero=Z_IN)
        one = requantized(g, int_conv(g, q), "conv1.out", S_OUT, -128, 127, dtype="int8")
        m, e = dyadic_array(S_IN / S_OUT)
        two = g(
            ops.requantize(
                q, m, e, name="input.rq", lo=-128, hi=127, dtype="int8", in_zero_point=Z_IN
            )
        )
        return g.dq(g(ops.concat([one, two], name="cat")), "cat", S_OUT)

    check(graph(before), graph(expected))


def test_concat_of_one_scale_feeds_a_convolution_directly() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN)
        b = g.qdq(g(relax.op.nn.max_pool2d(a, [3, 3], [1, 1], [1, 1])), "pool", S_IN)
        joined = g(relax.op.concat([a, b], 1))
        return g.qdq(g.conv(joined, weights(RNG, (4, 6, 1, 1)), S_W, "conv1"), "out", S_OUT)

    mod = QdqToInteger(graph(build))
    assert op_names(mod)[1:5] == ["q4.max_pool2d", "q4.concat", "q4.conv2d", "q4.requantize"]


def test_padding_is_filled_with_the_zero_point() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        p = g(relax.op.nn.pad(a, [0, 0, 2, 2, 0, 0, 0, 0], "constant", 0.0))
        return g.qdq(p, "out", S_OUT, zero=3)

    mod = QdqToInteger(graph(build))
    assert op_names(mod)[1:3] == ["relax.nn.pad", "q4.requantize"]
    (pad,) = (b.value for b in mod["main"].body.blocks[0].bindings if "pad" in str(b.value)[:12])
    assert float(pad.attrs.pad_value) == Z_IN


def test_a_pool_under_the_same_quantizer_takes_its_name() -> None:
    """PT2E shares a quantizer across a max-pool; the pooled tensor keeps the name of the second."""

    def before(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        p = g.qdq(g(relax.op.nn.max_pool2d(a, [2, 2])), "maxpool.out", S_IN, zero=Z_IN)
        return g.qdq(g(relax.op.concat([p, p], 1)), "cat.out", S_IN, zero=Z_IN)

    def expected(g, x):
        q = g.q(x, "input", S_IN, zero=Z_IN)
        p = g(
            ops.max_pool2d(q, name="maxpool.out", pool_size=[2, 2], strides=[1, 1], padding=[0] * 4)
        )
        return g.dq(g(ops.concat([p, p], name="cat.out")), "cat.out", S_IN, zero=Z_IN)

    check(graph(before), graph(expected))


def test_a_pool_read_twice_is_written_once() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN)
        p = g(relax.op.nn.max_pool2d(a, [3, 3], [1, 1], [1, 1]))
        one, two = (g.conv(p, weights(RNG, (4, 3, 1, 1)), S_W, n) for n in ("conv1", "conv2"))
        return g(relax.op.concat([g.qdq(one, "a", S_OUT), g.qdq(two, "b", S_OUT)], 1))

    assert op_names(QdqToInteger(graph(build))).count("q4.max_pool2d") == 1


def test_window_of_padding_alone_is_an_error() -> None:
    def build(g, x):
        p = relax.op.nn.max_pool2d(g.qdq(x, "input", S_IN), [1, 1], [1, 1], [1, 1])
        return g.qdq(g(p), "out", S_OUT)

    with pytest.raises(UnsupportedError, match="padding alone"):
        QdqToInteger(graph(build))


def test_pool_of_a_sum_quantizes_the_sum_first() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        c = g.conv(a, W[:3], S_W[:3], "conv1", padding=1)
        total = g.relu(g(relax.op.add(c, a)))
        return g.qdq(g(relax.op.nn.max_pool2d(total, [2, 2])), "out", S_OUT, signed=False)

    mod = QdqToInteger(graph(build))
    assert op_names(mod)[1:4] == ["q4.conv2d", "q4.add", "q4.max_pool2d"]
    assert float_ops(mod) == []


def test_channels_moved_elsewhere_keep_their_scales_only_as_channels() -> None:
    """Logits of a 1x1 convolution: reshaped they stay integer, permuted they are float before."""
    w = weights(RNG, (5, 3, 1, 1))
    scale = np.linspace(0.01, 0.02, 5)

    def build(move):
        def inner(g, x):
            pooled = g(relax.op.nn.avg_pool2d(g.qdq(x, "input", S_IN), [6, 5]))
            q = g.qdq(pooled, "pool", S_IN)
            return g(move(g.conv(q, w, scale, "head")))

        return QdqToInteger(graph(inner, (2, 3, 6, 5)))

    flat = build(lambda c: relax.op.reshape(c, [2, 5]))
    assert op_names(flat)[-2:] == ["relax.reshape", "q4.dequantize"]
    np.testing.assert_array_equal(constants(flat, "head.dq")[0], S_IN * scale)
    permuted = build(lambda c: relax.op.permute_dims(c, [0, 2, 3, 1]))
    assert op_names(permuted)[-2:] == ["q4.dequantize", "relax.permute_dims"]
