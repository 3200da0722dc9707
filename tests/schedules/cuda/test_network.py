"""Whole networks in the emulator: tensors flow from kernel to kernel as they do on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.relay_passes.builders import Graph, graph, weights
from tests.schedules.cuda.network import EmulatedNetwork
from tests.small_network import quantized

FAMILIES = (75, 80, 90)
MODELS = Path(__file__).resolve().parents[3] / "examples" / "models"

# Bits of weights and activations of each convolution of a block.
CONFIGS = {
    "uniform8": ((8, 8), (8, 8), (8, 8)),
    "uniform4": ((4, 4), (4, 4), (4, 4)),
    "w4a8": ((4, 8), (4, 8), (4, 8)),
    "mixed": ((8, 4), (4, 4), (4, 8)),
}
IMAGE = (2, 3, 17, 15)


def bottleneck(config: str, seed: int = 0) -> tvm.IRModule:
    """A 7x7 stem with its pool, two bottleneck blocks (the second strided), the head."""
    rng = np.random.default_rng(seed)
    bits = CONFIGS[config]

    def conv(g: Graph, x: relax.Var, channels: int, kernel: int, name: str, w: int, stride=1):
        shape = (channels, int(x.ty.shape[1]), kernel, kernel)
        # Scales bring sums of random products to about one, so that results use their range.
        size = np.sqrt(np.prod(shape[1:])) * 2**w * 0.2
        scale = rng.uniform(0.7, 1.4, channels) / size
        bias, padding = rng.normal(0, 0.2, channels), kernel // 2
        quantized = weights(rng, shape, w)
        return g.conv(x, quantized, scale, name, bias, bits=w, padding=padding, strides=stride)

    def unsigned(g: Graph, x: relax.Expr, name: str, b: int) -> relax.Var:
        return g.qdq(g.relu(x), name, 3.0 / (2**b - 1), bits=b, signed=False)

    def block(g: Graph, x: relax.Var, width: int, name: str, stride: int) -> relax.Var:
        (w1, a1), (w2, a2), (w3, a3) = bits
        shortcut = conv(g, x, 4 * width, 1, f"{name}.down", w1, stride)
        shortcut = g.qdq(shortcut, f"{name}.down.out", 0.03)
        y = unsigned(g, conv(g, x, width, 1, f"{name}.conv1", w1), f"{name}.out1", a2)
        y = conv(g, y, width, 3, f"{name}.conv2", w2, stride)
        y = unsigned(g, y, f"{name}.out2", a3)
        y = conv(g, y, 4 * width, 1, f"{name}.conv3", w3)
        return unsigned(g, g(relax.op.add(y, shortcut)), f"{name}.out", a1)

    def build(g: Graph, x: relax.Var) -> relax.Expr:
        x = g.qdq(x, "input", 0.02)
        y = unsigned(g, conv(g, x, 24, 7, "stem", 8, 2), "stem.out", bits[0][1])
        y = g(relax.op.nn.max_pool2d(y, (3, 3), (2, 2), (1, 1)))
        y = block(g, y, 16, "block1", 1)
        y = block(g, y, 24, "block2", 2)
        y = g.qdq(g(relax.op.mean(y, [2, 3])), "pool.out", 0.01, signed=False)
        w = weights(rng, (10, int(y.ty.shape[1])))
        return g.linear(y, w, rng.uniform(0.001, 0.01, 10), "fc", rng.normal(0, 1, 10))

    return graph(build, IMAGE)


def image(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype("float32")


def test_small_network() -> None:
    network = EmulatedNetwork(quantized(), 75)
    result = network.check(image((2, 3, 9, 7)))
    assert len(np.unique(result)) > 10


def test_entry_of_quantized_data() -> None:
    network = EmulatedNetwork(quantized(), 75)
    x = np.random.default_rng(2).integers(-128, 128, (2, 3, 9, 7)).astype("int8")
    expected = network.reference.run(x.astype("float32") * np.float32(0.02))
    np.testing.assert_array_equal(network.run_quantized(x), expected)


def test_bottleneck() -> None:
    network = EmulatedNetwork(bottleneck("mixed"), 80)
    network.check(image(IMAGE))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", CONFIGS)
def test_bottleneck_everywhere(config: str, family: int) -> None:
    network = EmulatedNetwork(bottleneck(config), family)
    network.check(image(IMAGE))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model", ["resnet20_w4a4", "resnet20_w8a8"])
def test_shipped_network(model: str, family: int) -> None:
    pytest.importorskip("torch")
    from tvm_q4.frontend import load_model

    network = EmulatedNetwork(load_model(MODELS / f"{model}.pt2", image_size=(12, 12)), family)
    network.check(image((1, 3, 12, 12)))
