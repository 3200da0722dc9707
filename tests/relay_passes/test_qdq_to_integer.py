"""QdqToInteger: layers and quantizers, compared structurally."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tests.relay_passes.builders import (
    attrs,
    constants,
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
from tvm_q4.quant import INT32_MAX, INT32_MIN, dyadic_array
from tvm_q4.relay_passes.qdq_to_integer import QdqToInteger


def test_convolution_bias_zero_point_and_relu() -> None:
    def before(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        c = g.relu(g.conv(a, W, S_W, "conv1", BIAS, padding=1))
        return g.qdq(c, "conv1.out", S_OUT, signed=False, bits=4)

    def expected(g, x):
        acc = int_conv(g, g.q(x, "input", S_IN, zero=Z_IN))
        out = requantized(g, acc, "conv1.out", S_OUT, 0, 15, dtype="uint8")
        return g.dq(out, "conv1.out", S_OUT, signed=False, bits=4)

    check(graph(before), graph(expected))


def test_relu_clamps_at_the_zero_point_and_relu6_at_its_rounded_image() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN)
        c = g.conv(a, W, S_W, "conv1", BIAS)
        one = g.qdq(g.relu(c), "relu", S_OUT, zero=-7)
        two = g.qdq(g(relax.op.clip(c, 0.0, 6.0)), "relu6", S_OUT, zero=-7)
        return g(relax.op.concat([one, two]))

    mod = QdqToInteger(graph(build))
    assert (attrs(mod, "relu")["lo"], attrs(mod, "relu")["hi"]) == (-7, 127)
    assert (attrs(mod, "relu6")["lo"], attrs(mod, "relu6")["hi"]) == (-7, -7 + round(6 / S_OUT))
    assert named(mod)["relu"].args[0].same_as(named(mod)["relu6"].args[0])


def test_four_bit_weights_are_declared_from_their_range() -> None:
    w4 = weights(RNG, (4, 3, 1, 1), bits=4)

    def build(bits):
        def inner(g, x):
            return g.qdq(g.conv(g.qdq(x, "input", S_IN), w4, S_W, "c", bits=bits), "o", S_OUT)

        return QdqToInteger(graph(inner))

    assert attrs(build(4), "c")["weight_bits"] == 4
    assert attrs(build(8), "c")["weight_bits"] == 8


def test_asymmetric_weights_lose_their_zero_point() -> None:
    stored = np.array([[[[0]], [[255]]], [[[128]], [[100]]]], np.uint8)

    def build(g, x):
        a = g.qdq(x, "input", S_IN)
        scale, zero = np.array([0.1, 0.2]), np.array([128, 128])
        call = ops.dequantize(
            relax.const(stored), scale, zero, name="c.weight.dq", qmin=0, qmax=255, axis=0
        )
        return g.qdq(g(relax.op.nn.conv2d(a, g(call))), "o", S_OUT)

    mod = QdqToInteger(graph(build, (1, 2, 3, 3)))
    np.testing.assert_array_equal(constants(mod, "c")[0], stored.astype(int) - 128)
    assert attrs(mod, "c")["weight_bits"] == 8


def test_an_integer_bias_is_used_as_it_is() -> None:
    bias = np.array([12345, -2, 0, 7], np.int32)

    def build(g, x):
        c = g.conv(g.qdq(x, "input", S_IN), W, S_W, "conv1", padding=1)
        call = ops.dequantize(
            relax.const(bias), S_IN * S_W, np.zeros(4), name="conv1.bias.dq", qmin=INT32_MIN,
            qmax=INT32_MAX,
            axis=0,
        )  # fmt: skip
        return g.qdq(g(relax.op.add(c, g(relax.op.reshape(g(call), [1, 4, 1, 1])))), "o", S_OUT)

    np.testing.assert_array_equal(constants(QdqToInteger(graph(build)), "conv1")[1], bias)


def test_last_linear_layer_is_dequantized_and_nothing_else() -> None:
    w = weights(RNG, (10, 3))
    scale, bias = np.linspace(0.01, 0.02, 10), np.linspace(-1, 1, 10).astype(np.float32)

    def before(g, x):
        return g.linear(g.qdq(x, "input", S_IN), w, scale, "fc", bias)

    def expected(g, x):
        steps = np.rint(bias.astype(np.float64) / (S_IN * scale)).astype(np.int32)
        acc = g(ops.dense(g.q(x, "input", S_IN), w, steps, name="fc"))
        return g(ops.dequantize(acc, S_IN * scale, name="fc.dq", qmin=INT32_MIN, qmax=INT32_MAX))

    check(graph(before, (2, 3)), graph(expected, (2, 3)))


def test_weights_given_transposed_make_the_same_linear_layer() -> None:
    w = weights(RNG, (5, 3))

    def build(transposed):
        def inner(g, x):
            a = g.qdq(x, "input", S_IN)
            if not transposed:
                return g.linear(a, w, 0.5, "fc")
            zero = np.zeros(5)
            call = ops.dequantize(
                relax.const(w.T.copy()), np.full(5, 0.5), zero, name="fc.weight.dq", qmin=-128,
                qmax=127, axis=1,
            )  # fmt: skip
            return g(relax.op.matmul(a, g(call)))

        return QdqToInteger(graph(inner, (2, 3)))

    tvm.ir.assert_structural_equal(build(True), build(False))


def test_shared_quantizer_and_identity_leave_no_operator() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        same = g.q(a, "again", S_IN, zero=Z_IN)
        narrower = g.q(a, "narrower", S_IN, zero=Z_IN, bits=4)
        other = g.q(a, "other", S_IN, zero=0)
        return g(relax.Tuple([same, narrower, other]))

    mod = QdqToInteger(graph(build))
    assert [n for n in named(mod)] == ["input", "narrower", "other"]
    assert constants(mod, "narrower")[0].tolist() == [2**30]
    assert constants(mod, "narrower")[1].tolist() == [30]
    assert attrs(mod, "other")["in_zero_point"] == Z_IN


def test_two_quantizers_read_the_same_accumulator() -> None:
    def build(g, x):
        c = g.relu(g.conv(g.qdq(x, "input", S_IN), W, S_W, "conv1", BIAS))
        wide = g.qdq(c, "conv1.out", S_OUT / 16, signed=False)
        narrow = g.qdq(c, "conv1.out.q2", S_OUT, signed=False, bits=4)
        return g(relax.op.concat([wide, narrow]))

    calls = named(QdqToInteger(graph(build)))
    acc = calls["conv1.out"].args[0]
    assert acc.same_as(calls["conv1.out.q2"].args[0])
    assert list(calls)[1:4] == ["conv1", "conv1.out", "conv1.out.q2"]


def test_chained_quantizers_stay_chained() -> None:
    def build(g, x):
        c = g.conv(g.qdq(x, "input", S_IN), W, S_W, "conv1", BIAS)
        wide = g.qdq(c, "wide", S_OUT / 16)
        return g.qdq(wide, "narrow", S_OUT, bits=4)

    mod = QdqToInteger(graph(build))
    assert op_names(mod)[1:4] == ["q4.conv2d", "q4.requantize", "q4.requantize"]
    m, e = dyadic_array((S_OUT / 16) / S_OUT)
    assert [c.tolist() for c in constants(mod, "narrow")] == [m.tolist(), e.tolist()]


def test_names_are_unique_and_a_taken_one_gets_a_suffix() -> None:
    def build(g, x):
        c = g.conv(g.qdq(x, "input", S_IN), W, S_W, "conv1")
        return g.qdq(g.relu(c), "conv1", S_OUT)

    assert list(named(QdqToInteger(graph(build)))) == ["input", "conv1", "conv1.out", "conv1.dq"]
