"""QdqToInteger against exact rational arithmetic: equal integers, whatever the network looks like.

Scales are small integers times powers of two and output scales powers of two, so that every ratio
is a dyadic number that multiplier and shift hold exactly; equality can then be demanded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

from tests.relay_passes.builders import Graph, float_ops, graph, named, weights
from tests.relay_passes.emulation import Emulator
from tvm_q4 import ops
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.pipeline import to_integer
from tvm_q4.relay_passes.qdq_to_integer import QdqToInteger

SHAPE = (2, 3, 6, 5)
Network = Callable[[Graph, relax.Var, np.random.Generator], relax.Expr]


def _scales(rng: np.random.Generator, count: int, power: int) -> NDArray[np.float64]:
    return rng.integers(1, 64, count) * 2.0**-power


def _bias(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return rng.uniform(-2, 2, count).astype(np.float32)


def _input(g: Graph, x: relax.Var) -> relax.Var:
    return g.qdq(x, "input", 3 * 2.0**-7, zero=-5)


def _w(rng: np.random.Generator, *shape: int, bits: int = 8) -> NDArray[np.int8]:
    return weights(rng, shape, bits)


def plain(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """Convolutions with padding, stride and a zero point; ReLU; W8A8 and W4A4."""
    w1, w2 = _w(rng, 4, 3, 3, 3), _w(rng, 5, 4, 3, 3, bits=4)
    c = g.conv(_input(g, x), w1, _scales(rng, 4, 12), "conv1", _bias(rng, 4), padding=1)
    u4 = g.qdq(g.relu(c), "conv1.out", 2.0**-3, bits=4, signed=False)
    c = g.conv(u4, w2, _scales(rng, 5, 8), "conv2", _bias(rng, 5), bits=4, padding=1, strides=2)
    return g.qdq(c, "conv2.out", 2.0**-4, zero=3)


def relu6(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """ReLU6 and another clamp, on types with zero points."""
    c = g.conv(_input(g, x), _w(rng, 4, 3, 1, 1), _scales(rng, 4, 8), "conv1", _bias(rng, 4))
    a = g.qdq(g(relax.op.clip(c, 0.0, 6.0)), "conv1.out", 2.0**-4, zero=-20)
    c = g.conv(a, _w(rng, 4, 4, 1, 1), _scales(rng, 4, 9), "conv2")
    return g.qdq(g(relax.op.clip(c, -1.5, 2.25)), "conv2.out", 2.0**-5, zero=11, signed=False)


def grouped(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """A grouped and a depthwise convolution."""
    c = g.conv(_input(g, x), _w(rng, 6, 3, 1, 1), _scales(rng, 6, 9), "conv1")
    a = g.qdq(g.relu(c), "conv1.out", 2.0**-4, signed=False)
    c = g.conv(a, _w(rng, 6, 2, 3, 3), _scales(rng, 6, 10), "conv2", padding=1, groups=3)
    a = g.qdq(g.relu(c), "conv2.out", 2.0**-3, signed=False)
    return g.qdq(
        g.conv(a, _w(rng, 6, 1, 3, 3), _scales(rng, 6, 9), "conv3", groups=6), "out", 2.0**-3
    )


def residual(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """A block whose skip is its quantized input, the accumulator on the right; two outputs."""
    a = _input(g, x)
    c = g.conv(a, _w(rng, 3, 3, 3, 3), _scales(rng, 3, 11), "conv1", _bias(rng, 3), padding=1)
    total = g.relu(g(relax.op.add(a, c)))
    wide = g.qdq(total, "add", 2.0**-6, signed=False)
    narrow = g.qdq(total, "add.q2", 2.0**-2, bits=4, signed=False)
    c = g.conv(narrow, _w(rng, 3, 3, 3, 3, bits=4), _scales(rng, 3, 8), "conv2", bits=4, padding=1)
    return g.qdq(g(relax.op.add(c, wide)), "add2", 2.0**-3, zero=7, signed=False)


def shortcut(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """A block with a convolution as its shortcut, quantized with a zero point."""
    a = _input(g, x)
    down = g.conv(a, _w(rng, 4, 3, 1, 1), _scales(rng, 4, 9), "down", _bias(rng, 4), strides=2)
    skip = g.qdq(down, "down.out", 5 * 2.0**-6, zero=9)
    c = g.conv(
        a, _w(rng, 4, 3, 3, 3), _scales(rng, 4, 11), "conv1", _bias(rng, 4), padding=1, strides=2
    )
    return g.qdq(g.relu(g(relax.op.add(c, skip))), "add", 2.0**-3, signed=False)


def kept_quantizer(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """Quantizers on both sides of the add, at their own scales."""
    a = _input(g, x)
    c = g.conv(a, _w(rng, 3, 3, 1, 1), _scales(rng, 3, 9), "conv1", _bias(rng, 3))
    left = g.qdq(c, "conv1.out", 3 * 2.0**-6, zero=-3)
    return g.qdq(g.relu(g(relax.op.add(left, a))), "add", 2.0**-5, zero=-128)


def wide_stream(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """An int16 residual stream, and the narrow tensor made from the wide one."""
    a = _input(g, x)
    wide = g.qdq(
        g.conv(a, _w(rng, 3, 3, 1, 1), _scales(rng, 3, 9), "conv1"), "stream", 2.0**-11, bits=16
    )
    narrow = g.qdq(g.relu(wide), "narrow", 2.0**-5, signed=False)
    c = g.conv(narrow, _w(rng, 3, 3, 1, 1), _scales(rng, 3, 9), "conv2")
    return g.qdq(g(relax.op.add(c, wide)), "stream2", 2.0**-10, bits=16)


def pools(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """A pending max-pool, one on integers, and an average pool with a zero point."""
    c = g.conv(_input(g, x), _w(rng, 4, 3, 1, 1), _scales(rng, 4, 8), "conv1", _bias(rng, 4))
    pooled = g(relax.op.nn.max_pool2d(g.relu(c), [3, 3], [2, 2], [1, 1, 1, 1]))
    a = g.qdq(pooled, "maxpool.out", 2.0**-2, bits=4, signed=False)
    a = g.qdq(g(relax.op.nn.max_pool2d(a, [2, 2])), "maxpool2.out", 2.0**-3, zero=-100)
    return g.qdq(g(relax.op.nn.avg_pool2d(a, [2, 2])), "avgpool.out", 2.0**-5, zero=1, signed=False)


def counted_average(g: Graph, x: relax.Var, _rng: np.random.Generator) -> relax.Expr:
    """Average pools that count 1, 2 or 4 positions, or always 4 (powers of two stay dyadic)."""
    a = _input(g, x)
    out = relax.op.nn.avg_pool2d(
        a, [2, 2], [2, 2], [1, 1, 1, 1], ceil_mode=False, count_include_pad=False
    )
    a = g.qdq(g(out), "avg1.out", 2.0**-6, zero=-7)
    out = relax.op.nn.avg_pool2d(
        a, [2, 2], [2, 2], [1, 1, 1, 1], ceil_mode=True, count_include_pad=True
    )
    return g.qdq(g(out), "avg2.out", 2.0**-7, zero=4)


def concatenation(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """Branches at their own scales: an accumulator, a pool and a quantized tensor."""
    a = _input(g, x)
    c = g.conv(a, _w(rng, 2, 3, 1, 1), _scales(rng, 2, 9), "branch0", _bias(rng, 2))
    p = g(relax.op.nn.max_pool2d(a, [3, 3], [1, 1], [1, 1, 1, 1]))
    joined = g(relax.op.concat([g.relu(c), p, a], 1))
    b = g.qdq(joined, "concat", 2.0**-5, zero=2)
    return g.qdq(g.conv(b, _w(rng, 3, 8, 1, 1), _scales(rng, 3, 10), "conv"), "out", 2.0**-3)


def option_a(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """A padded shortcut: slices and zero channels on a tensor with a zero point."""
    a = _input(g, x)
    s = g(relax.op.strided_slice(a, [2], [0], [6], [2]))
    s = g(relax.op.strided_slice(s, [3], [0], [5], [2]))
    s = g(relax.op.nn.pad(s, [0, 0, 1, 2, 0, 0, 0, 0], "constant", 0.0))
    c = g.conv(a, _w(rng, 6, 3, 3, 3), _scales(rng, 6, 11), "conv1", padding=1, strides=2)
    return g.qdq(g(relax.op.add(c, s)), "add", 2.0**-4, zero=6)


def classifier(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """Global average (8 positions), flatten, linear layer."""
    a = g(relax.op.strided_slice(_input(g, x), [2, 3], [0, 0], [4, 4], [1, 2]))
    pooled = g(relax.op.reshape(g(relax.op.mean(a, [2, 3], True)), [2, 3]))
    q = g.qdq(pooled, "avgpool.out", 2.0**-6, zero=-1)
    return g.qdq(
        g.linear(q, _w(rng, 7, 3), _scales(rng, 7, 9), "fc", _bias(rng, 7)), "out", 2.0**-5
    )


NETWORKS = (
    plain, relu6, grouped, residual, shortcut, kept_quantizer, wide_stream, pools, counted_average,
    concatenation, option_a, classifier,
)  # fmt: skip


def _traces(mod: tvm.IRModule, integer: tvm.IRModule, seed: int) -> tuple[dict, dict]:
    x = np.random.default_rng(seed + 100).uniform(-4, 4, SHAPE).astype(np.float32)
    x.flat[:2] = -100, 100
    # The input quantizer works in float32; on its own grid it equals exact arithmetic.
    x = _on_grid(mod, x)
    return Emulator(mod, x).tensors, ReferenceExecutor(integer).trace(x)


def _on_grid(mod: tvm.IRModule, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiples of the input's scale, which any rounding quantizes alike."""
    scale = np.float32(ops.const_array(named(mod)["input"].args[1]))
    return (np.rint(x / scale) * scale).astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.__name__)
def test_integers_equal_exact_arithmetic(network: Network, seed: int) -> None:
    mod = graph(lambda g, x: network(g, x, np.random.default_rng(seed)), SHAPE)
    integer = QdqToInteger(mod)
    assert float_ops(integer) == []
    expected, found = _traces(mod, integer, seed)
    compared = [name for name in expected if name in found]
    assert len(compared) >= len(expected) - 1  # a quantizer that changes nothing leaves no tensor
    for name in compared:
        np.testing.assert_array_equal(
            found[name].reshape(expected[name].shape), expected[name], name
        )
    changing = [n for n in compared if len(np.unique(expected[n])) > 3]
    assert changing, "no tensor of this network says anything"


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.__name__)
def test_the_whole_pipeline_keeps_every_integer(network: Network) -> None:
    mod = graph(lambda g, x: network(g, x, np.random.default_rng(7)), SHAPE)
    before, after = QdqToInteger(mod), to_integer(mod)
    x = np.random.default_rng(8).uniform(-4, 4, SHAPE).astype(np.float32)
    one, two = ReferenceExecutor(before).trace(x), ReferenceExecutor(after).trace(x)
    common = one.keys() & two.keys()
    assert common
    for name in common:
        np.testing.assert_array_equal(one[name], two[name], name)
    np.testing.assert_array_equal(ReferenceExecutor(before).run(x), ReferenceExecutor(after).run(x))


def test_a_multiplier_differs_by_position_where_the_count_does() -> None:
    mod = QdqToInteger(graph(lambda g, x: counted_average(g, x, np.random.default_rng(0)), SHAPE))
    (_, m, e) = named(mod)["avg1.out"].args
    assert ops.const_array(m).shape == (1, 1, 4, 3)
    assert np.unique(ops.const_array(e)).size == 3  # 1, 2 and 4 positions
    assert ops.const_array(named(mod)["avg2.out"].args[1]).shape[0] == 1
