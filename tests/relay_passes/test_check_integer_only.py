"""What stays float is listed with name, operator and reason."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.relay_passes.builders import graph, weights
from tvm_q4.relay_passes.check_integer_only import check_integer_only
from tvm_q4.relay_passes.pipeline import to_integer

RNG = np.random.default_rng(0)
W = weights(RNG, (4, 3, 1, 1))
FLOAT_W = relax.const(RNG.standard_normal((4, 3, 1, 1)).astype(np.float32))


def test_an_integer_network_has_none() -> None:
    def build(g, x):
        c = g.qdq(g.relu(g.conv(g.qdq(x, "input", 0.1), W, 0.01, "conv1")), "conv1.out", 0.1)
        pooled = g.qdq(g(relax.op.reshape(g(relax.op.mean(c, [2, 3], True)), [1, 4])), "p", 0.1)
        return g(relax.op.reshape(g.linear(pooled, weights(RNG, (2, 4)), 0.1, "fc"), [2]))

    assert check_integer_only(to_integer(graph(build))) == []


CASES = {
    "stem": (
        lambda g, x: g.qdq(g.relu(g.conv(x, W, 0.01, "conv1")), "out", 0.1),
        [
            ("relax.nn.conv2d", "its input is not quantized"),
            ("relax.nn.relu", "it works on float tensors"),
        ],
    ),
    "weight": (
        lambda g, x: g.qdq(g(relax.op.nn.conv2d(g.qdq(x, "input", 0.1), FLOAT_W)), "out", 0.1),
        [("relax.nn.conv2d", "its weight is not quantized, or not to int8 around its zero point")],
    ),
    "wide": (
        lambda g, x: g.qdq(g.conv(g.qdq(x, "input", 0.1, bits=16), W, 0.01, "conv1"), "out", 0.1),
        [("relax.nn.conv2d", "its input has more than 8 bits")],
    ),
    "result": (
        lambda g, x: g.relu(g.conv(g.qdq(x, "input", 0.1), W, 0.01, "conv1")),
        [("relax.nn.relu", "its result is not quantized")],
    ),
    "pool": (
        lambda g, x: g.qdq(g(relax.op.nn.avg_pool2d(x, [2, 2])), "out", 0.1),
        [("relax.nn.avg_pool2d", "its input is not quantized")],
    ),
    "other": (
        lambda g, x: g.qdq(g(relax.op.sigmoid(g.qdq(x, "input", 0.1))), "out", 0.1),
        [("relax.sigmoid", "the operator has no integer form here")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_float_operators_are_listed_with_their_reason(case: str) -> None:
    build, expected = CASES[case]
    found = check_integer_only(to_integer(graph(build)))
    assert [(f["op"], f["reason"]) for f in found] == expected
    assert all(f["name"] for f in found)
