"""Declared ranges of integer tensors."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tests.relay_passes.builders import graph, named, weights
from tvm_q4 import ops
from tvm_q4.meta import with_meta
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange
from tvm_q4.ranges import value_ranges
from tvm_q4.relay_passes.pipeline import to_integer

INT32 = IntRange(INT32_MIN, INT32_MAX)
RNG = np.random.default_rng(0)


def test_every_operator_has_its_declared_range() -> None:
    def build(g, x):
        a = g.qdq(x, "input", 0.1, zero=5, bits=4)
        c = g.relu(g.conv(a, weights(RNG, (4, 3, 3, 3)), 0.01, "conv1", padding=1))
        p = g(relax.op.nn.max_pool2d(c, [2, 2]))
        q = g.qdq(p, "pool", 0.2, zero=-9)
        s = g(relax.op.nn.avg_pool2d(q, [3, 2]))
        return g.qdq(s, "avg", 0.1, signed=False)

    mod = to_integer(graph(build))
    ranges = value_ranges(mod)
    assert ranges["input"] == IntRange(-8, 7)
    assert ranges["conv1"] == INT32
    assert ranges["conv1.out"] == ranges["pool"] == IntRange(-9, 127)
    assert ranges["avg"] == IntRange(0, 255)
    (sums,) = (n for n, c in named(mod).items() if ops.is_q4(c, "avg_pool2d"))
    assert ranges[sums] == INT32
    variables = {k for k in ranges if isinstance(k, relax.Var)}
    assert len(variables) == len([k for k in ranges if isinstance(k, str)])


def test_movement_hands_on_the_range_and_padding_widens_it() -> None:
    def build(g, x):
        q = g.q(x, "input", 0.1, bits=4, signed=False)
        moved = g(relax.op.strided_slice(q, [2], [0], [6], [2]))
        return g(relax.op.nn.pad(moved, [0, 0, 1, 1, 0, 0, 0, 0], "constant", 20))

    mod = graph(build)
    ranges = value_ranges(mod)
    q, moved, padded, out = (b.var for b in mod["main"].body.blocks[0].bindings)
    assert ranges[q] == ranges[moved] == IntRange(0, 15)
    assert ranges[padded] == ranges[out] == IntRange(0, 20)


def test_concat_covers_all_parts() -> None:
    def build(g, x):
        one = g(ops.requantize(x, 1, 0, name="one", lo=-3, hi=5, dtype="int8"))
        two = g(ops.requantize(x, 1, 0, name="two", lo=0, hi=9, dtype="int8"))
        return g(ops.concat([one, two], name="cat"))

    assert value_ranges(graph(build, dtype="int8"))["cat"] == IntRange(-3, 9)


def test_integer_input_has_the_stored_range_or_that_of_its_type() -> None:
    mod = graph(lambda g, x: g(ops.concat([x, x], name="cat")), dtype="uint8")
    (param,) = mod["main"].params
    assert value_ranges(mod)[param] == IntRange(0, 255)
    stored = with_meta(mod, input_range=[0, 15])
    assert value_ranges(stored)["cat"] == IntRange(0, 15)


def test_float_tensors_have_none() -> None:
    assert value_ranges(graph(lambda g, x: g.relu(x))) == {}
