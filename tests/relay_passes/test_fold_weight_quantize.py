"""FoldWeightQuantize: constants are quantized as the operator would at run time."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.relay_passes.builders import Graph, constants, float_ops, graph, op_names
from tvm_q4 import ops
from tvm_q4.errors import InputError
from tvm_q4.relay_passes.fold_weight_quantize import FoldWeightQuantize
from tvm_q4.relay_passes.pipeline import to_integer

RNG = np.random.default_rng(5)
W = RNG.uniform(-1, 1, (4, 3, 1, 1)).astype(np.float32)
S_W = np.array([0.13, 0.11, 0.07, 0.2], np.float32).astype(np.float64)


def fake_quantized(g: Graph, w: np.ndarray, form: str) -> relax.Var:
    kind = {"qmin": -7, "qmax": 7, "axis": 0}
    q = ops.quantize(
        relax.const(w), S_W, np.zeros(4), name="conv1.weight", dtype="int8", form=form, **kind
    )
    return g(ops.dequantize(g(q), S_W, np.zeros(4), name="conv1.weight.dq", **kind))


def network(w: np.ndarray, form: str) -> tvm.IRModule:
    def build(g, x):
        weight = fake_quantized(g, w, form)
        return g.qdq(g(relax.op.nn.conv2d(g.qdq(x, "input", 0.1), weight)), "out", 0.2)

    return graph(build)


@pytest.mark.parametrize("form", ["reciprocal", "divide"])
def test_weights_become_integers_in_the_form_of_the_operator(form: str) -> None:
    folded = FoldWeightQuantize(network(W, form))
    shaped = S_W.reshape(4, 1, 1, 1)
    if form == "divide":
        steps = W / shaped.astype(np.float32)
    else:
        steps = W * (1 / shaped).astype(np.float32)
    stored = constants(folded, "conv1.weight.dq")[0]
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(stored, np.clip(np.rint(steps), -7, 7))
    assert op_names(folded).count("q4.quantize") == 2  # the activations'


def test_forms_differ_where_they_should() -> None:
    """A weight that one form puts on a tie and the other below it."""
    scale = np.float64(np.float32(0.11))
    grid = np.arange(-6.5, 7.0)
    candidates = np.float32(grid * scale)
    near = np.concatenate([candidates, np.nextafter(candidates, np.float32(9))])
    one = np.rint(near / np.float32(scale))
    two = np.rint(near * np.float32(1 / scale))
    assert (one != two).any()
    w = np.zeros((4, len(near), 1, 1), np.float32)
    w[1, :, 0, 0] = near

    def stored(form):
        def build(g, x):
            return g(relax.op.nn.conv2d(x, fake_quantized(g, w, form)))

        mod = FoldWeightQuantize(graph(build, (1, len(near), 2, 2)))
        return constants(mod, "conv1.weight.dq")[0][1, :, 0, 0]

    np.testing.assert_array_equal(stored("divide"), np.clip(one, -7, 7))
    np.testing.assert_array_equal(stored("reciprocal"), np.clip(two, -7, 7))


def test_fake_quantized_weights_make_an_integer_network() -> None:
    assert float_ops(to_integer(network(W, "reciprocal"))) == []


def test_nan_weight_is_an_error_naming_the_weight() -> None:
    w = W.copy()
    w[2] = np.nan
    with pytest.raises(InputError, match=r"conv1\.weight"):
        FoldWeightQuantize(network(w, "reciprocal"))


def test_module_without_quantized_constants_is_returned_as_it_is() -> None:
    mod = graph(lambda g, x: g.qdq(x, "input", 0.1))
    assert FoldWeightQuantize(mod).same_as(mod)
