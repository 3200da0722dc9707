"""QdqToInteger: constant channels, values out of range, float islands, nothing to do."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.relay_passes.builders import (
    float_ops,
    graph,
    named,
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
)
from tvm_q4 import ops
from tvm_q4.errors import NumericsError
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.qdq_to_integer import QdqToInteger


def test_dead_channel_with_a_bias_beyond_int32_is_a_constant() -> None:
    w = W.copy()
    w[1] = 0
    bias, scale = np.array([0.5, 70.0, 0.0, 1.0], np.float32), np.array([0.01, 1e-9, 0.01, 0.01])

    def build(g, x):
        c = g.conv(g.qdq(x, "input", 0.05, zero=3), w, scale, "conv1", bias)
        return g.qdq(c, "conv1.out", 0.7, zero=-10)

    mod = QdqToInteger(graph(build))
    _, m, e, offset = named(mod)["conv1.out"].args
    assert ops.const_array(m)[1] == 0
    assert ops.const_array(e)[1] == 1
    assert ops.const_array(offset).tolist() == [0, 100, 0, 0]
    x = RNG.standard_normal((1, 3, 6, 5)).astype(np.float32)
    assert (ReferenceExecutor(mod).trace(x)["conv1.out"][:, 1] == 90).all()


def test_dead_channel_keeps_its_exact_bias_in_an_add_and_in_float() -> None:
    w = W[:3].copy()
    w[1] = 0
    bias, scale = np.array([0.5, 3.14159, 0.0], np.float32), np.array([0.01, 1e-12, 0.01])

    def added(g, x):
        a = g.qdq(x, "input", 0.05)
        c = g.conv(a, w, scale, "conv1", bias, padding=1)
        return g.qdq(g(relax.op.add(c, a)), "add", 2.0**-16, bits=32)

    x = np.zeros((1, 3, 6, 5), np.float32)
    traced = ReferenceExecutor(QdqToInteger(graph(added))).trace(x)
    assert (traced["add"][:, 1] == round(float(bias[1]) * 2**16)).all()

    def plain(g, x):
        return g.conv(g.qdq(x, "input", 0.05), w, scale, "conv1", bias)

    assert (ReferenceExecutor(QdqToInteger(graph(plain))).run(x)[:, 1] == bias[1]).all()


def test_bias_beyond_int32_in_a_live_channel_is_an_error_with_layer_and_channel() -> None:
    def build(g, x):
        scale = np.array([0.01, 0.01, 1e-9, 0.01])
        c = g.conv(g.qdq(x, "input", S_IN), W, scale, "layer1.0.conv1", np.full(4, 9.0))
        return g.qdq(c, "out", S_OUT)

    with pytest.raises(NumericsError, match=r"'layer1.0.conv1' channel 2.* 9\.0 .*int32"):
        QdqToInteger(graph(build))


def test_ratio_out_of_range_is_an_error_with_layer_and_channel() -> None:
    def build(g, x):
        scale = np.array([0.01, 1e12, 0.01, 0.01])
        return g.qdq(g.conv(g.qdq(x, "input", S_IN), W, scale, "conv7"), "out", 1e-3)

    with pytest.raises(NumericsError, match="conv7 channel 1"):
        QdqToInteger(graph(build))


@pytest.mark.parametrize("stays", ["input", "weight", "quantizer"])
def test_float_islands_keep_their_operators_and_the_rest_turns_integer(stays: str) -> None:
    """An unquantized stem, an unquantized weight, an activation that nothing quantizes."""
    w2 = weights(RNG, (2, 4, 1, 1))

    def build(g, x):
        a = x if stays == "input" else g.qdq(x, "input", S_IN)
        if stays == "weight":
            c = g(
                relax.op.nn.conv2d(
                    a, relax.const(RNG.standard_normal((4, 3, 3, 3)).astype("float32"))
                )
            )
        else:
            c = g.conv(a, W, S_W, "conv1", BIAS)
        c = g(relax.op.sigmoid(c)) if stays == "quantizer" else g.relu(c)
        return g.qdq(g.conv(g.qdq(c, "mid", S_OUT), w2, 0.01, "conv2"), "out", S_OUT)

    mod = QdqToInteger(graph(build))
    wanted = {
        "input": ["relax.nn.conv2d", "relax.add", "relax.nn.relu"],
        "weight": ["relax.nn.conv2d", "relax.nn.relu"],
        "quantizer": ["relax.sigmoid"],
    }
    assert float_ops(mod) == wanted[stays]
    assert ops.is_q4(named(mod)["mid"], "quantize")
    assert ops.is_q4(named(mod)["conv2"], "conv2d")


def test_float_island_computes_what_the_model_computes() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        c = g(relax.op.nn.conv2d(a, g.weight(W, S_W, "conv1")))
        total = g(relax.op.multiply(c, c))
        return g.qdq(g.relu(total), "out", 4.0)

    before = graph(build)
    x = RNG.standard_normal((1, 3, 6, 5)).astype(np.float32)
    one, two = (
        ReferenceExecutor(m).trace(x)["out"].astype(int) for m in (before, QdqToInteger(before))
    )
    assert np.abs(one - two).max() <= 1
    assert len(np.unique(one)) > 10


def test_module_without_quantization_is_returned_as_it_is() -> None:
    mod = graph(lambda g, x: g.relu(g(relax.op.nn.conv2d(x, relax.const(W.astype("float32"))))))
    assert QdqToInteger(mod).same_as(mod)


def test_integer_module_with_divided_logits_is_not_rewritten() -> None:
    """An imported recipe divides; that is never turned into a product."""

    def build(g, x):
        acc = g(
            ops.dense(g.q(x, "input", S_IN), weights(RNG, (4, 3)), np.zeros(4, np.int32), name="fc")
        )
        return g(
            ops.dequantize(acc, np.array([3.0, 5, 7, 9]), name="o", qmin=-9, qmax=9, form="divide")
        )

    mod = graph(build, (2, 3))
    tvm.ir.assert_structural_equal(QdqToInteger(mod), mod)
