"""The whole pipeline: phases, dumps, what it leaves alone, and real networks from end to end."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

from tests.relay_passes.builders import graph, named, op_names, weights
from tests.relay_passes.rounded_bias import with_rounded_biases
from tvm_q4 import ops
from tvm_q4.errors import InputError, NumericsError
from tvm_q4.meta import model_meta, with_meta
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.check_integer_only import check_integer_only
from tvm_q4.relay_passes.pipeline import INTEGER_PHASES, to_integer

RNG = np.random.default_rng(0)


W = weights(RNG, (4, 3, 3, 3))


def small() -> tvm.IRModule:
    def build(g, x):
        c = g.conv(g.qdq(x, "input", 0.1), W, 0.01, "conv1", np.ones(4))
        arrays = [relax.const(np.full(4, v, np.float32)) for v in (0.5, 1.0, 0.0, 2.0)]
        out = g(relax.op.nn.batch_norm(c, *arrays, axis=1, training=False))
        return g.qdq(g.relu(g(relax.TupleGetItem(out, 0))), "conv1.out", 0.1, signed=False)

    return with_meta(graph(build), name="small")


def test_phases_run_in_order_and_facts_are_kept() -> None:
    mod = to_integer(small())
    assert op_names(mod) == ["q4.quantize", "q4.conv2d", "q4.requantize", "q4.dequantize"]
    assert model_meta(mod)["name"] == "small"


def test_pipeline_is_registered() -> None:
    mod = relax.get_pipeline("tvm_q4_integer")(small())
    tvm.ir.assert_structural_equal(mod, to_integer(small()))


def test_dump_writes_each_phase(tmp_path: Path) -> None:
    to_integer(small(), dump_dir=tmp_path / "ir")
    names = [f"{i:02d}-{n}.py" for i, n in enumerate(["imported", *(n for n, _ in INTEGER_PHASES)])]
    assert sorted(p.name for p in (tmp_path / "ir").iterdir()) == names
    assert "batch_norm" in (tmp_path / "ir" / names[0]).read_text()
    assert "q4.requantize" in (tmp_path / "ir" / names[-1]).read_text()


def test_dump_into_a_file_is_an_input_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match=r"00-imported\.py"):
        to_integer(small(), dump_dir=blocked)


def test_overflow_is_an_error_of_the_pipeline() -> None:
    w = np.full((1, 3, 3, 3), 127, np.int8)

    def build(g, x):
        bias = np.array([2.0**31 - 200 * 127 * 27])
        return g.qdq(g.conv(g.qdq(x, "input", 1.0), w, 1.0, "conv1", bias), "out", 2.0**20)

    with pytest.raises(NumericsError, match="conv1 channel 0"):
        to_integer(graph(build))


@pytest.mark.parametrize("stage", ["float", "integer"])
def test_float_and_integer_modules_stay_as_they_are(stage: str) -> None:
    if stage == "integer":
        mod = to_integer(small())
    else:
        w = relax.const(RNG.standard_normal((4, 3, 3, 3)).astype(np.float32))
        mod = graph(lambda g, x: g.relu(g(relax.op.nn.conv2d(x, w))))
    tvm.ir.assert_structural_equal(to_integer(mod), mod)


def _phases(mod: tvm.IRModule) -> list[tvm.IRModule]:
    """The module after each phase."""
    out = [mod]
    for _, phase in INTEGER_PHASES:
        out.append(phase(out[-1]))
    return out


def _integers(mod: tvm.IRModule, x: NDArray, overrides: dict | None = None) -> dict[str, NDArray]:
    trace = ReferenceExecutor(mod).trace(x, overrides)
    return {k: v for k, v in trace.items() if np.issubdtype(v.dtype, np.integer)}


def _same_form(a: dict[str, NDArray], b: dict[str, NDArray]) -> list[str]:
    return [k for k in a if k in b and (a[k].shape, a[k].dtype) == (b[k].shape, b[k].dtype)]


def check_network(spec: str, size: tuple[int, int]) -> None:
    """Integer only; phases keep each integer; layers are those of the float model but for ties."""
    from tvm_q4.frontend import load_model

    mods = _phases(load_model(spec, image_size=size))
    imported, integer = mods[0], mods[-1]
    assert check_integer_only(integer) == []
    assert op_names(integer).count("q4.quantize") == 1
    assert op_names(integer).count("q4.dequantize") == 1
    x = RNG.standard_normal([int(d) for d in imported["main"].params[0].ty.shape]).astype(
        np.float32
    )
    traces = [_integers(m, x) for m in [with_rounded_biases(imported), *mods[1:]]]
    for before, after in pairwise(traces[3:]):
        assert len(_same_form(before, after)) > 20
        for name in _same_form(before, after):
            np.testing.assert_array_equal(before[name], after[name], name)
    common = _same_form(traces[0], traces[-1])
    assert len(common) >= len(traces[0]) - 4 - sum(".weight" in n for n in traces[0])
    layers = _integers(integer, x, {k: traces[0][k] for k in common})
    for name in common:
        step = np.abs(layers[name].astype(int) - traces[0][name].astype(int))
        assert step.max() <= 1, name
        assert (step > 0).mean() < 0.002, name
    assert len(np.unique(ReferenceExecutor(integer).run(x))) > 5


def test_cifar_resnet_from_end_to_end() -> None:
    pytest.importorskip("torch")
    check_network("zoo:resnet20-cifar@uniform4", (32, 32))


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", ["resnet18@uniform4", "resnet18@uniform8", "resnet18@w4a8", "inception_v3@uniform8"]
)
def test_imagenet_networks_from_end_to_end(spec: str) -> None:
    pytest.importorskip("torch")
    check_network(f"zoo:{spec}", (299, 299) if "inception" in spec else (61, 45))


@pytest.mark.slow
def test_resnet50_keeps_its_convolutions() -> None:
    pytest.importorskip("torch")
    from tvm_q4.frontend import load_model

    integer = to_integer(load_model("zoo:resnet50@uniform8", image_size=(64, 64)))
    assert sum(ops.is_q4(c, "conv2d") for c in named(integer).values()) == 53
