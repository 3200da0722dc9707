"""FoldRequantize: each rule before and after, where it must not act, equal integers throughout."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.modules import full_range
from tests.relay_passes.builders import Graph, graph, named, op_names
from tvm_q4 import ops
from tvm_q4.quant import INT32_MAX, INT32_MIN
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.fold_requantize import FoldRequantize

RNG = np.random.default_rng(11)
UNIT = (2**30, 30)
SHAPE = (2, 3, 6, 5)


def rq(g: Graph, x: relax.Expr, name: str, m, e, lo: int, hi: int, dtype: str, **kw) -> relax.Var:
    return g(ops.requantize(x, m, e, name=name, lo=lo, hi=hi, dtype=dtype, **kw))


def pool(g: Graph, x: relax.Expr, name: str) -> relax.Var:
    return g(ops.max_pool2d(x, name=name, pool_size=[3, 3], strides=[2, 2], padding=[1, 1, 0, 1]))


def check(before: tvm.IRModule, expected: tvm.IRModule) -> None:
    """The pass makes `expected`, with the same integers under every name that is left."""
    found = FoldRequantize(before)
    tvm.ir.assert_structural_equal(found, expected)
    x = full_range(RNG, str(before["main"].params[0].ty.dtype), SHAPE)
    one, two = ReferenceExecutor(before).trace(x), ReferenceExecutor(found).trace(x)
    for name in one.keys() & two.keys():
        np.testing.assert_array_equal(one[name], two[name], name)
    np.testing.assert_array_equal(ReferenceExecutor(before).run(x), ReferenceExecutor(found).run(x))


def unchanged(build, dtype: str = "int32") -> None:
    mod = graph(build, SHAPE, dtype)
    assert FoldRequantize(mod).same_as(mod)


def first(g: Graph, x: relax.Expr, lo: int = -128, hi: int = 127, name: str = "a") -> relax.Var:
    return rq(g, x, name, [2**30, 3 * 2**29, 2**30], [52, 54, 53], lo, hi, "int8", zero_point=3)


def test_identity_is_its_input() -> None:
    def before(g, x):
        b = rq(g, first(g, x), "b", *UNIT, -128, 127, "int8", zero_point=3, in_zero_point=3)
        return rq(g, b, "c", 5, 4, -9, 9, "int8")

    check(
        graph(before, SHAPE, "int32"),
        graph(lambda g, x: rq(g, first(g, x), "c", 5, 4, -9, 9, "int8"), SHAPE, "int32"),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"zero_point": 4},
        {"offset": [0, 1, 0]},
        {"m": [2**30, 2**30 + 1, 2**30]},
        {"lo": -100, "used": 2},
    ],
    ids=str,
)
def test_what_changes_a_value_stays(change: dict) -> None:
    kind = {"lo": -128, "zero_point": 3, "offset": None, "m": [2**30] * 3} | change
    used = kind.pop("used", 1)

    def build(g, x):
        a = first(g, x)
        kw = {k: kind[k] for k in ("lo", "zero_point", "offset")}
        e = [30] * 3
        call = ops.requantize(
            a, kind["m"], e, name="b", hi=127, dtype="int8", in_zero_point=3, **kw
        )
        b = g(call)
        return b if used == 1 else g(relax.Tuple([a, b]))

    unchanged(build)


def test_an_integer_relu_joins_the_clamp_before_it() -> None:
    def before(g, x):
        return rq(g, first(g, x), "b", *UNIT, 3, 100, "int8", zero_point=3, in_zero_point=3)

    check(
        graph(before, SHAPE, "int32"), graph(lambda g, x: first(g, x, 3, 100, "b"), SHAPE, "int32")
    )


def test_clamps_join_to_the_narrower_of_both_and_through_a_chain() -> None:
    def before(g, x):
        a = first(g, x, -50, 127)
        b = rq(g, a, "b", *UNIT, -128, 60, "int8", zero_point=3, in_zero_point=3)
        return rq(g, b, "c", 2**29, 29, -20, 127, "int8", zero_point=3, in_zero_point=3)

    check(
        graph(before, SHAPE, "int32"), graph(lambda g, x: first(g, x, -20, 60, "c"), SHAPE, "int32")
    )


def test_relu_after_an_add_in_the_accumulators_units_joins_it() -> None:
    full = {"lo": INT32_MIN, "hi": INT32_MAX}

    def add(g, x, **kw):
        half = rq(g, x, "half", 2**30, 34, INT32_MIN, INT32_MAX, "int32")
        return g(ops.add(half, half, 1, 0, 3, 2, form="accumulator", dtype="int32", **kw))

    def before(g, x):
        return rq(g, add(g, x, name="sum", **full), "relu", *UNIT, 0, INT32_MAX, "int32")

    check(
        graph(before, SHAPE, "int32"),
        graph(lambda g, x: add(g, x, name="relu", lo=0, hi=INT32_MAX), SHAPE, "int32"),
    )


def test_clamps_that_leave_nothing_stay() -> None:
    def build(g, x):
        a = first(g, x, -50, -10)
        return rq(g, a, "b", *UNIT, 5, 127, "int8", zero_point=3, in_zero_point=3)

    unchanged(build)


def test_max_pool_moves_behind_the_requantization_to_a_narrower_type() -> None:
    def before(g, x):
        return first(g, pool(g, x, "p"), name="q")

    def expected(g, x):
        return pool(g, first(g, x, name="q_1"), "q")

    check(graph(before, SHAPE, "int32"), graph(expected, SHAPE, "int32"))


def test_max_pool_moves_before_the_requantization_to_a_wider_type() -> None:
    def widened(g, x, name):
        return rq(g, x, name, [3, 5, 9], [1, 2, 0], INT32_MIN, INT32_MAX, "int32", in_zero_point=2)

    check(
        graph(lambda g, x: pool(g, widened(g, x, "w"), "p"), SHAPE, "uint8"),
        graph(lambda g, x: widened(g, pool(g, x, "p_1"), "p"), SHAPE, "uint8"),
    )


@pytest.mark.parametrize(
    "why", ["read twice", "negative multiplier", "differs by position", "wider"]
)
def test_max_pool_stays(why: str) -> None:
    def build(g, x):
        p = pool(g, x, "p")
        m, e = np.full(3, 2**30), np.full(3, 53)
        if why == "negative multiplier":
            m = np.array([1, -1, 1])
        if why == "differs by position":
            m, e = np.full((1, 1, 3, 3), 2**30), np.full((1, 1, 3, 3), 53)
        wide = why == "wider"
        q = rq(g, p, "q", m, e, *((INT32_MIN, INT32_MAX, "int32") if wide else (-128, 127, "int8")))
        return g(relax.Tuple([p, q])) if why == "read twice" else q

    unchanged(build)


def test_tensors_read_elsewhere_keep_their_operator() -> None:
    def build(g, x):
        a = first(g, x)
        b = rq(g, a, "b", *UNIT, 3, 127, "int8", zero_point=3, in_zero_point=3)
        return g(ops.concat([a, b], name="c"))

    mod = graph(build, SHAPE, "int32")
    assert list(named(FoldRequantize(mod))) == ["a", "b", "c"]


def test_a_folded_identity_counts_as_a_reader_of_its_input() -> None:
    """`a` is read by `c` through the identity `b`, and by `d`: `c` may not take its place."""

    def build(g, x):
        a = first(g, x)
        b = rq(g, a, "b", *UNIT, -128, 127, "int8", zero_point=3, in_zero_point=3)
        c = rq(g, b, "c", *UNIT, 3, 127, "int8", zero_point=3, in_zero_point=3)
        return g(ops.concat([c, a], name="d"))

    folded = FoldRequantize(graph(build, SHAPE, "int32"))
    assert list(named(folded)) == ["a", "c", "d"]
    assert named(folded)["c"].args[0].same_as(named(folded)["d"].args[1])


def test_module_without_requantization_is_returned_as_it_is() -> None:
    mod = graph(lambda g, x: g.qdq(x, "input", 0.1))
    assert FoldRequantize(mod).same_as(mod)
    assert op_names(mod) == ["q4.quantize", "q4.dequantize"]
