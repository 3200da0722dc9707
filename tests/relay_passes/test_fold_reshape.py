"""FoldReshape: chains become one reshape, what changes nothing goes, the rest stays."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.modules import full_range, module
from tvm_q4 import ops
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.fold_reshape import FoldReshape

SHAPE = (2, 6, 2, 1)


def moved(*steps):
    """A module that applies the functions one after another to an int8 input."""

    def build(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        for step in steps:
            x = b.emit(step(x))
        return x

    return module(SHAPE, "int8", build)


def to(*shape: int):
    return lambda x: relax.op.reshape(x, shape)


def clamp(x):
    return ops.requantize(x, 2**30, 30, name="clamp", lo=-9, hi=9, dtype="int8")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((to(2, 1, 2, 6), to(2, 12)), (to(2, 12),)),
        ((to(2, 1, 2, 6), to(2, 3, 4), to(2, 12)), (to(2, 12),)),
        ((relax.op.flatten, to(2, 12)), (to(2, 12),)),
        ((to(2, 12), to(*SHAPE), clamp), (clamp,)),
        ((to(*SHAPE), clamp), (clamp,)),
        ((lambda x: relax.op.squeeze(x, [3]), lambda x: relax.op.expand_dims(x, [1]), clamp),
         (to(2, 1, 6, 2), clamp)),
    ],
)  # fmt: skip
def test_chains_are_one_reshape(before, after) -> None:
    old, expected = moved(*before), moved(*after)
    found = FoldReshape(old)
    tvm.ir.assert_structural_equal(found, expected)
    x = full_range(np.random.default_rng(3), "int8", SHAPE)
    assert np.array_equal(ReferenceExecutor(old).run(x), ReferenceExecutor(found).run(x))


@pytest.mark.parametrize(
    "steps",
    [
        (to(2, 12),),
        (to(2, 12), clamp, to(2, 3, 4)),
        (lambda x: relax.op.permute_dims(x, [0, 2, 1, 3]), to(2, 12)),
    ],
)
def test_what_cannot_be_joined_stays(steps) -> None:
    mod = moved(*steps)
    assert FoldReshape(mod).same_as(mod)


def test_both_readers_of_a_reshape_are_served() -> None:
    def build(b, x):
        y = b.emit(relax.op.reshape(x, (2, 12)))
        z = b.emit(relax.op.reshape(y, (2, 4, 3)))
        return b.emit(relax.Tuple([y, z]))

    found = FoldReshape(module(SHAPE, "int8", build))
    x = full_range(np.random.default_rng(3), "int8", SHAPE)
    first, second = ReferenceExecutor(found).run(x)
    assert np.array_equal(first, x.reshape(2, 12))
    assert np.array_equal(second, x.reshape(2, 4, 3))
