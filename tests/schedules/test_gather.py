"""Data movement between integer layers, in whole networks as a library holds them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.schedules.builders import (
    S8,
    U4,
    U8,
    check_network,
    cpu,
    full_range,
    lower,
    module,
    ratios,
    requantized,
    weights,
)
from tvm_q4 import ops
from tvm_q4.errors import UnsupportedError

RNG = np.random.default_rng(23)
SHAPE = (2, 16, 7, 6)
Move = Callable[[relax.Var], relax.Expr]


def _moved(move: Move, pad: int = 0) -> tvm.IRModule:
    """A layer, a movement, and a layer that reads what was moved."""

    def emit(b, x):
        m, e = ratios(RNG, 16, 31, 32)
        y = b.emit(ops.requantize(x, m, e, name="y", lo=-128, hi=127, dtype="int8"))
        moved = b.emit(move(y))
        shape = [int(d) for d in moved.ty.shape]
        if len(shape) == 2:
            return b.emit(ops.dense(moved, weights(RNG, 8, (10, shape[1])), [0], name="fc"))
        w = weights(RNG, 8, (16, shape[1], 1 + 2 * pad, 1 + 2 * pad))
        return b.emit(ops.conv2d(moved, w, [0], name="c", strides=[1, 1], padding=[pad] * 4))

    return module(SHAPE, S8, emit)


MOVES: dict[str, tuple[Move, int]] = {
    "every second pixel": (lambda y: relax.op.strided_slice(y, [2, 3], [0, 1], [7, 6], [2, 3]), 1),
    "crop": (lambda y: relax.op.strided_slice(y, [2, 3], [1, -4], [6, 6]), 0),
    "channels": (lambda y: relax.op.strided_slice(y, [1], [3], [14], [2]), 0),
    "one image": (lambda y: relax.op.strided_slice(y, [0], [1], [2]), 0),
    "pad channels": (lambda y: relax.op.nn.pad(y, [0, 0, 5, 6, 0, 0, 0, 0]), 1),
    "pad with a zero point": (
        lambda y: relax.op.nn.pad(y, [0, 0, 0, 0, 1, 2, 0, 3], "constant", -9), 0,
    ),
    "flatten": (lambda y: relax.op.reshape(y, (2, 16 * 7 * 6)), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_movement(name: str) -> None:
    check_network(_moved(*MOVES[name]), full_range(RNG, S8, SHAPE))


def test_option_a_shortcut() -> None:
    # CIFAR ResNets: every second pixel, zero channels around, added to the block's accumulator.
    def emit(b, x):
        w1, w2 = weights(RNG, 4, (32, 16, 3, 3)), weights(RNG, 4, (32, 32, 3, 3))
        how = {"padding": [1] * 4, "weight_bits": 4}
        a = b.emit(ops.conv2d(x, w1, [0], name="c1", strides=[2, 2], **how))
        y = requantized(b, a, RNG, U4, name="c1.out")
        acc = b.emit(ops.conv2d(y, w2, [0], name="c2", strides=[1, 1], **how))
        small = b.emit(relax.op.strided_slice(x, [2, 3], [0, 0], [8, 8], [2, 2]))
        skip = b.emit(relax.op.nn.pad(small, [0, 0, 8, 8, 0, 0, 0, 0], "constant", 0))
        m, e = ratios(RNG, 32, 34, 36)
        form = {"form": "fused", "lo": 0, "hi": 15, "dtype": "uint8"}
        return b.emit(ops.add(acc, skip, m, e, m, e, name="sum", **form))

    check_network(module((1, 16, 8, 8), U4, emit), full_range(RNG, U4, (1, 16, 8, 8)))


def test_reshape_of_one_position_moves_nothing() -> None:
    def emit(b, x):
        pooled = b.emit(
            ops.avg_pool2d(x, name="p", pool_size=[7, 6], strides=[1, 1], padding=[0] * 4)
        )
        y = requantized(b, pooled, RNG, S8, name="p.out")
        flat = b.emit(relax.op.reshape(y, (2, 16)))
        return b.emit(ops.dense(flat, weights(RNG, 8, (10, 16)), [0], name="fc"))

    built = check_network(module(SHAPE, U8, emit), full_range(RNG, U8, SHAPE))
    kinds = [c.layer.kind for c in built.lowered.calls]
    assert kinds == ["gather", "avg_pool2d", "dense", "gather"]


@pytest.mark.parametrize("shape", [(3, 21), (1, 3, 5, 7)])
def test_integer_input_and_output_are_plain(shape: tuple[int, ...]) -> None:
    def emit(b, x):
        m, e = ratios(RNG, shape[1], 31, 32)
        return b.emit(ops.requantize(x, m, e, name="y", lo=-128, hi=127, dtype="int8"))

    built = check_network(module(shape, S8, emit), full_range(RNG, S8, shape))
    assert [c.layer.kind for c in built.lowered.calls] == ["gather", "elementwise", "gather"]


@pytest.mark.parametrize(
    ("move", "operator"),
    [
        (lambda y: relax.op.permute_dims(y, [0, 2, 3, 1]), "relax.permute_dims"),
        (lambda y: relax.op.strided_slice(y, [2], [6], [0], [-1]), "relax.strided_slice"),
        (lambda y: relax.op.nn.pad(y, [0, 0, 0, 0, 1, 1, 1, 1], "reflect"), "relax.nn.pad"),
        (lambda y: relax.op.reshape(y, (2, 4, 4, 42)), "relax.reshape"),
        (lambda y: relax.op.concat([y, y], axis=1), "relax.concat"),
        (lambda y: relax.op.astype(y, "float32"), "relax.astype"),
    ],
)
def test_movement_without_a_kernel_is_an_error(move: Move, operator: str) -> None:
    def emit(b, x):
        m, e = ratios(RNG, 16, 31, 32)
        y = b.emit(ops.requantize(x, m, e, name="y", lo=-128, hi=127, dtype="int8"))
        return b.emit(move(y))

    with pytest.raises(UnsupportedError, match=rf"^{operator} .*has no kernel"):
        lower(module(SHAPE, S8, emit), cpu("x86-64"))
