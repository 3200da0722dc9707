"""QdqToInteger: residual adds in every form."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.relay_passes.builders import (
    attrs,
    constants,
    graph,
    op_names,
)
from tests.relay_passes.example_layer import (
    S_IN,
    S_OUT,
    S_W,
    Z_IN,
    W,
    check,
)
from tvm_q4 import ops
from tvm_q4.meta import model_meta
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange, dyadic_array, fused_ratios
from tvm_q4.relay_passes.qdq_rules.real import Tensor
from tvm_q4.relay_passes.qdq_rules.residual import _why_not_fused
from tvm_q4.relay_passes.qdq_to_integer import QdqToInteger


def _residual(rhs_first: bool, skip: dict | None = None):
    def build(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        c = g.conv(a, W[:3], S_W[:3], "conv1", padding=1)
        skip_of = g.qdq(a, "skip", **skip) if skip else a
        pair = [skip_of, c] if rhs_first else [c, skip_of]
        return g.qdq(g.relu(g(relax.op.add(*pair))), "add", S_OUT, signed=False)

    return graph(build)


@pytest.mark.parametrize("rhs_first", [False, True])
def test_fused_add_takes_the_accumulator_on_its_left(rhs_first: bool) -> None:
    def expected(g, x):
        q = g.q(x, "input", S_IN, zero=Z_IN)
        sums = W[:3].reshape(3, -1).astype(np.int64).sum(axis=1)
        acc = g(
            ops.conv2d(
                q,
                W[:3],
                -Z_IN * sums,
                name="conv1",
                strides=[1, 1],
                padding=[1] * 4,
                zero_point=Z_IN,
            )
        )
        m1, m2, e = fused_ratios(S_IN * S_W[:3] / S_OUT, S_IN / S_OUT)
        out = g(
            ops.add(
                acc,
                q,
                m1,
                e,
                m2,
                e,
                name="add",
                form="fused",
                lo=0,
                hi=255,
                dtype="uint8",
                rhs_zero_point=Z_IN,
            )
        )
        return g.dq(out, "add", S_OUT, signed=False)

    check(_residual(rhs_first), graph(expected))


def test_quantizer_between_convolution_and_add_is_kept() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN, zero=Z_IN)
        c = g.qdq(g.conv(a, W[:3], S_W[:3], "conv1", padding=1), "conv1.out", 0.05)
        return g.qdq(g(relax.op.add(c, a)), "add", S_OUT)

    mod = QdqToInteger(graph(build))
    assert op_names(mod)[:4] == ["q4.quantize", "q4.conv2d", "q4.requantize", "q4.add"]
    m1, m2, e = fused_ratios(0.05 / S_OUT, S_IN / S_OUT)
    for found, wanted in zip(constants(mod, "add"), (m1, e, m2, e), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert attrs(mod, "add")["form"] == "fused"
    assert attrs(mod, "add")["rhs_zero_point"] == Z_IN


def test_two_accumulators_are_fused_where_63_bits_hold_them() -> None:
    def build(g, x):
        a = g.qdq(x, "input", S_IN)
        c, d = (g.conv(a, W, S_W * k, n, padding=1) for k, n in ((1, "conv1"), (0.5, "down")))
        return g.qdq(g(relax.op.add(c, d)), "add", S_OUT)

    mod = QdqToInteger(graph(build))
    m1, m2, e = fused_ratios(S_IN * S_W / S_OUT, S_IN * S_W * 0.5 / S_OUT)
    for found, wanted in zip(constants(mod, "add"), (m1, e, m2, e), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert attrs(mod, "add")["form"] == "fused"
    assert "two_sided_adds" not in model_meta(mod)


def test_two_int32_streams_are_two_sided_and_reported() -> None:
    """A stream that is 2^32 steps wide, times multipliers near 2^31, leaves 63 bits."""
    scale = S_OUT * (1 - 2.0**-20)

    def build(g, x):
        a = g.qdq(x, "input", S_IN)
        one, two = (
            g.qdq(a, n, scale, bits=32, zero=z) for n, z in (("one", 0), ("two", INT32_MIN))
        )
        return g.qdq(g(relax.op.add(one, two)), "add", S_OUT)

    mod = QdqToInteger(graph(build))
    assert attrs(mod, "add")["form"] == "two_sided"
    m, e = dyadic_array(np.array([scale / S_OUT]))
    assert [c.tolist() for c in constants(mod, "add")] == [[m[0]], [e[0]], [m[0]], [e[0]]]
    (report,) = model_meta(mod)["two_sided_adds"]
    assert report["name"] == "add"
    assert "channel 0" in report["reason"]


def test_a_shift_below_one_is_two_sided() -> None:
    """A skip of ratio 2^30 has shift 0 and leaves no room for the rounding term."""
    mod = QdqToInteger(_residual(False, {"scale": S_OUT * 2.0**30, "bits": 8}))
    assert attrs(mod, "add")["form"] == "two_sided"
    assert "below 1" in model_meta(mod)["two_sided_adds"][0]["reason"]


def test_fused_bound_is_exact_and_counts_each_channel() -> None:
    """2^31 * (2^31 - 1) + 2^31 * m2 + 2^61 is 2^63 - 1 + 1 for one m2 and below it for the next."""

    def side(bound: list[int]) -> Tensor:
        return Tensor(
            origin=None, shape=(1, 2, 1, 1), var=None, scale=np.ones((1, 1, 1, 1)),
            range=IntRange(INT32_MIN, INT32_MAX), bound=np.array(bound).reshape(1, -1, 1, 1),
            name="t",
        )  # fmt: skip

    def full(value: int, dtype: str) -> np.ndarray:
        return np.full((1, 2, 1, 1), value, dtype)

    lhs, rhs = side([1, 2**31]), side([1, 2**31])
    m1, e = full(2**31 - 1, "int64"), full(62, "int32")
    enough = (2**63 - 2**61 - 2**31 * (2**31 - 1)) // 2**31
    assert "channel 1" in _why_not_fused(lhs, rhs, m1, e, full(enough, "int64"))
    assert _why_not_fused(lhs, rhs, m1, e, full(enough - 1, "int64")) == ""
