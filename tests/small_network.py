"""A small residual network at the QDQ stage, and one whose first layer stays float."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tests.relay_passes.builders import Graph, graph, weights

SHAPE = (2, 3, 9, 7)
CLASSES = 10


def _block(g: Graph, x: relax.Var, rng: np.random.Generator) -> relax.Expr:
    """From a uint4 tensor [N, 16, H, W] of scale 0.1: a residual block, pooling, a linear layer."""
    out = g.conv(x, weights(rng, (16, 16, 3, 3), 4), 0.01, "conv2", bits=4, padding=1)
    added = g.relu(g(relax.op.add(out, x)))
    added = g.qdq(added, "add", 0.02, bits=8, signed=False)
    pooled = g.qdq(g(relax.op.mean(added, [2, 3])), "pool.out", 0.01, bits=8, signed=False)
    bias = rng.normal(0, 1, CLASSES)
    return g.linear(
        pooled, weights(rng, (CLASSES, 16)), rng.uniform(0.001, 0.01, CLASSES), "fc", bias
    )


def quantized(seed: int = 0, shape: tuple[int, ...] = SHAPE, flip: bool = False) -> tvm.IRModule:
    """Quantized throughout. `flip` changes the sign of one weight of ``conv2``'s predecessor."""
    rng = np.random.default_rng(seed)

    def build(g: Graph, x: relax.Var) -> relax.Expr:
        x = g.qdq(x, "input", 0.02)
        w = weights(rng, (16, 3, 3, 3))
        if flip:
            w[5, 1, 1, 1] = -w[5, 1, 1, 1]
        out = g.relu(g.conv(x, w, rng.uniform(0.001, 0.01, 16), "conv1", rng.normal(0, 0.1, 16)))
        return _block(g, g.qdq(out, "conv1.out", 0.1, bits=4, signed=False), rng)

    return graph(build, shape)


def float_stem(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tvm.IRModule:
    """The same with an unquantized first convolution."""
    rng = np.random.default_rng(seed)

    def build(g: Graph, x: relax.Var) -> relax.Expr:
        w = relax.const(rng.normal(0, 0.3, (16, 3, 3, 3)).astype("float32"), "float32")
        out = g.relu(g(relax.op.nn.conv2d(x, w, 1, 1)))
        return _block(g, g.qdq(out, "conv1.out", 0.1, bits=4, signed=False), rng)

    return graph(build, shape)
