"""FoldBatchNorm: float and integer weights, signs, dead channels, and what must stay."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.relay_passes.builders import Graph, constants, float_ops, graph, named, op_names, weights
from tvm_q4 import ops
from tvm_q4.errors import NumericsError
from tvm_q4.meta import model_meta
from tvm_q4.quant import INT32_MAX, INT32_MIN
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.fold_batch_norm import FoldBatchNorm
from tvm_q4.relay_passes.qdq_to_integer import QdqToInteger

RNG = np.random.default_rng(3)
GAMMA = np.array([1.5, -0.75, 0.0, 0.01], np.float32)
BETA = np.array([0.25, -1.0, 0.5, 7.0], np.float32)
MEAN = np.array([-0.5, 0.125, 2.0, 0.3], np.float32)
VAR = np.array([0.5, 4.0, 1.0, 1e-6], np.float32)
EPS = 1e-3
BIAS = np.array([0.1, 0.2, -0.3, 5.0], np.float32)
W, S_W = weights(RNG, (4, 3, 3, 3)), np.array([0.011, 0.02, 0.0071, 0.03])
S_IN = 0.05
FACTOR = GAMMA.astype(np.float64) / np.sqrt(VAR.astype(np.float64) + EPS)


def norm(g: Graph, x: relax.Expr, gamma: np.ndarray = GAMMA, var: np.ndarray = VAR) -> relax.Var:
    arrays = [relax.const(a, "float32") for a in (gamma, BETA, MEAN, var)]
    out = g(relax.op.nn.batch_norm(x, *arrays, axis=1, epsilon=EPS, training=False))
    return g(relax.TupleGetItem(out, 0))


def folded_bias(bias: np.ndarray) -> np.ndarray:
    b, mean, beta = (a.astype(np.float64) for a in (bias, MEAN, BETA))
    return FACTOR * (b - mean) + beta


@pytest.mark.parametrize("bias", [None, BIAS], ids=["no bias", "bias"])
def test_float_weights_are_multiplied(bias: np.ndarray | None) -> None:
    w = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)

    def before(g, x):
        c = g(relax.op.nn.conv2d(x, relax.const(w), padding=1))
        return g.relu(norm(g, c if bias is None else g.biased(c, bias)))

    def expected(g, x):
        scaled = (w.astype(np.float64) * FACTOR.reshape(4, 1, 1, 1)).astype(np.float32)
        c = g(relax.op.nn.conv2d(x, relax.const(scaled), padding=1))
        b = folded_bias(np.zeros(1) if bias is None else bias).reshape(1, 4, 1, 1)
        return g.relu(g(relax.op.add(c, relax.const(b.astype(np.float32)))))

    tvm.ir.assert_structural_equal(FoldBatchNorm(graph(before)), graph(expected))


def _quantized(w: np.ndarray = W, lo: int = -127, gamma: np.ndarray = GAMMA) -> tvm.IRModule:
    def build(g, x):
        call = ops.dequantize(
            relax.const(w), S_W, np.zeros(4), name="conv1.weight.dq", qmin=lo, qmax=127, axis=0
        )
        c = g(relax.op.nn.conv2d(g.qdq(x, "input", S_IN), g(call), padding=1))
        return g.qdq(g.relu(norm(g, g.biased(c, BIAS), gamma)), "out", 0.1)

    return graph(build)


def test_integer_weights_take_the_factor_into_their_scale_and_its_sign() -> None:
    folded = FoldBatchNorm(_quantized())
    stored, scale, zero = constants(folded, "conv1.weight.dq")
    np.testing.assert_array_equal(stored, W * np.array([1, -1, 0, 1], np.int8).reshape(4, 1, 1, 1))
    np.testing.assert_array_equal(scale, S_W * np.where(FACTOR == 0, 1, np.abs(FACTOR)))
    assert scale.dtype == np.float64
    assert not zero.any()
    assert "relax.nn.batch_norm" not in op_names(folded)
    assert "unfolded_batch_norms" not in model_meta(folded)


def test_bias_beside_integer_weights_keeps_31_bits() -> None:
    stored, scale, _ = constants(FoldBatchNorm(_quantized()), "conv1.bias.dq")
    exact = folded_bias(BIAS)
    for k in range(4):
        value = Fraction(int(stored[0, k, 0, 0])) * Fraction(float(scale[k]))
        assert abs(value - Fraction(float(exact[k]))) <= abs(Fraction(float(exact[k]))) / 2**30
        assert np.frexp(scale[k])[0] == 0.5  # a power of two


def test_folded_layer_becomes_integer_with_the_rounded_float64_bias() -> None:
    mod = QdqToInteger(FoldBatchNorm(_quantized()))
    assert float_ops(mod) == []
    _, bias = constants(mod, "conv1")
    scale = S_IN * S_W * np.where(FACTOR == 0, 1, np.abs(FACTOR))
    np.testing.assert_array_equal(bias, np.rint(folded_bias(BIAS) / scale))


def test_folding_changes_no_float_result_by_more_than_float32_rounding() -> None:
    mod = _quantized()
    x = RNG.standard_normal((1, 3, 6, 5)).astype(np.float32)
    one, two = (ReferenceExecutor(m).trace(x)["out"].astype(int) for m in (mod, FoldBatchNorm(mod)))
    assert np.abs(one - two).max() <= 1
    assert (one != two).mean() < 0.02
    assert len(np.unique(one)) > 20


def test_weights_that_cannot_change_sign_keep_their_batch_norm_and_say_so() -> None:
    w = W.copy()
    w[1, 0, 0, 0] = -128
    mod = _quantized(w, lo=-128)
    folded = FoldBatchNorm(mod)
    assert "relax.nn.batch_norm" in op_names(folded)
    (report,) = model_meta(folded)["unfolded_batch_norms"]
    assert "channel 1" in report["reason"]
    tvm.ir.assert_structural_equal(folded["main"], mod["main"])
    assert "relax.nn.batch_norm" in float_ops(QdqToInteger(folded))


def test_minus_128_in_a_channel_that_keeps_its_sign_is_no_obstacle() -> None:
    w = W.copy()
    w[0, 0, 0, 0] = -128
    assert "relax.nn.batch_norm" not in op_names(FoldBatchNorm(_quantized(w, lo=-128)))


@pytest.mark.parametrize("what", ["no convolution", "read twice", "bias not constant"])
def test_other_batch_norms_stay_as_they_are(what: str) -> None:
    w = relax.const(RNG.standard_normal((4, 4, 1, 1)).astype(np.float32))

    def build(g, x):
        c = g.relu(x) if what == "no convolution" else g(relax.op.nn.conv2d(x, w))
        c = g(relax.op.add(c, x)) if what == "bias not constant" else c
        out = norm(g, c)
        return g(relax.op.add(out, c)) if what == "read twice" else out

    mod = graph(build, (1, 4, 6, 5))
    tvm.ir.assert_structural_equal(FoldBatchNorm(mod)["main"], mod["main"])
    assert len(model_meta(FoldBatchNorm(mod))["unfolded_batch_norms"]) == 1


def test_a_variance_without_a_finite_factor_is_an_error() -> None:
    def build(g, x):
        w = relax.const(RNG.standard_normal((4, 3, 1, 1)).astype(np.float32))
        return norm(g, g(relax.op.nn.conv2d(x, w)), var=np.array([1, 1, -1, 1], np.float32))

    with pytest.raises(NumericsError, match=r"channel 2: variance -1\.0"):
        FoldBatchNorm(graph(build))


def test_module_without_batch_norm_is_returned_as_it_is() -> None:
    mod = graph(lambda g, x: g.qdq(x, "input", S_IN))
    assert FoldBatchNorm(mod).same_as(mod)


def test_an_integer_bias_before_the_norm_is_folded() -> None:
    stored = np.array([100, -200, 300, 5], np.int32)

    def build(g, x):
        call = ops.dequantize(
            relax.const(stored), S_IN * S_W, np.zeros(4), name="conv1.bias.dq.old", qmin=INT32_MIN,
            qmax=INT32_MAX, axis=0,
        )  # fmt: skip
        c = g.conv(g.qdq(x, "input", S_IN), W, S_W, "conv1")
        c = g(relax.op.add(c, g(relax.op.reshape(g(call), [1, 4, 1, 1]))))
        return g.qdq(norm(g, c), "out", 0.1)

    folded = FoldBatchNorm(graph(build))
    assert "conv1.bias.dq.old" not in named(folded)
    _, bias = constants(QdqToInteger(folded), "conv1")
    scale = S_IN * S_W * np.where(FACTOR == 0, 1, np.abs(FACTOR))
    wanted = folded_bias(stored * (S_IN * S_W)) / scale
    assert np.abs(bias - wanted).max() <= 0.5 + 1e-6
