"""``verify --onnxruntime``: every form of model, what it reports, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import tvm_q4
from tvm_q4.errors import EnvironmentMismatch, InputError
from tvm_q4.sample_input import sample_input

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.frontend.onnx_graphs import Onnx  # noqa: E402
from tests.fuzz.onnx_file import write_model  # noqa: E402
from tvm_q4.onnxruntime_check import OnnxRuntimeModel, onnxruntime_model  # noqa: E402

STYLES = ("QDQ", "QCDQ", "QOperator", "QONNX")
RNG = np.random.default_rng(3)


def saved(g: Onnx, result: str, path: Path, **options) -> Path:
    onnx.save(g.model(result, **options), path)
    return path


def int4_model(path: Path, batch: int | str = "N", axes: str = "NCHW") -> Path:
    """A convolution of UINT4 and INT4 activations; INT4 weights."""
    shape = (batch, 3, 6, 5) if axes == "NCHW" else (batch, 6, 5, 3)
    g = Onnx(shape, opset=21)
    x = "x" if axes == "NCHW" else g.node("Transpose", "x", perm=[0, 3, 1, 2])
    a = g.qdq(x, 0.25, 1, "int4")
    weight = g.const(RNG.integers(-8, 8, (4, 3, 3, 3)), "int4")
    scale, zero = g.const([0.03, 0.02, 0.05, 0.04], "float32"), g.const([0] * 4, "int4")
    w = g.node("DequantizeLinear", weight, scale, zero, axis=0)
    c = g.node("Relu", g.node("Conv", a, w, pads=[1, 1, 1, 1]))
    step = g.const(0.1237, "float32")
    q = g.node("QuantizeLinear", c, step, output_dtype=onnx.TensorProto.UINT4)
    flat = g.node("Flatten", g.node("DequantizeLinear", q, step), axis=1)
    fc = g.dq(g.const(RNG.integers(-9, 9, (5, 120)), "int8"), 0.05)
    return saved(g, g.node("Gemm", flat, fc, transB=1), path)


def verified(path: Path, batch: int = 2, count: int = 3) -> dict:
    library = tvm_q4.compile(path, batch=batch)
    x = sample_input(library.metadata, count, dtype="float32", seed=5)
    report = tvm_q4.verify(library, path, x, onnxruntime=True)
    assert report["bit_exact"] and report["n"] == count
    json.dumps(report)
    return report


def rows_of(report: dict) -> dict[str, float]:
    """Share of elements that equal onnxruntime's, by tensor."""
    rows = [r for r in report["layers"] if "onnxruntime_equal" in r]
    assert max(r["onnxruntime_max_step"] for r in rows) <= 1
    return {r["name"]: r["onnxruntime_equal"] for r in rows}


@pytest.mark.parametrize("style", STYLES)
def test_every_style(style: str, tmp_path: Path) -> None:
    report = verified(write_model(tmp_path / "m.onnx", style))
    rows = rows_of(report)
    assert rows["input"] == 1
    assert len(rows) == (3 if style == "QOperator" else 4)
    assert min(rows.values()) > 0.8  # the scales are powers of two: float32 meets many ties
    assert report["onnxruntime_top1_agreement"] == 1
    assert report["onnxruntime_version"].startswith("1.")
    stored = [r for r in report["layers"] if r["checked"] and "framework_equal" in r]
    for row in stored:  # one question, asked of our emulation of the model and of onnxruntime
        if row["name"] in rows:
            assert abs(row["framework_equal"] - rows[row["name"]]) < 0.02


@pytest.mark.parametrize(("batch", "axes"), [("N", "NCHW"), (1, "NCHW"), (4, "NHWC")])
def test_int4_activations_and_fixed_batches(batch: int | str, axes: str, tmp_path: Path) -> None:
    rows = rows_of(verified(int4_model(tmp_path / "m.onnx", batch, axes)))
    assert list(rows.values()) == [1, 1]


def test_a_quantizer_with_an_odd_zero_point(tmp_path: Path) -> None:
    """QONNX adds the zero point before it rounds, so ties go to the other side."""
    g = Onnx((1, 1, 2, 4), opset=17)
    parts = [g.const(v, "float32") for v in (1.0, 3.0, 4.0)]
    out = g.node("Quant", "x", *parts, domain="qonnx.custom_op.general", signed=0, narrow=0)
    path = saved(g, out, tmp_path / "m.onnx", domains=["qonnx.custom_op.general"])
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -9, 99, 0], np.float32).reshape(1, 1, 2, 4)
    model = OnnxRuntimeModel(path, {"q": out})
    result, traced = model.run_and_trace(x, {"q": np.zeros((1, 1, 2, 4), np.uint8)})
    assert traced["q"].ravel().tolist() == [4, 4, 6, 2, 2, 0, 15, 3]
    assert np.array_equal(result, traced["q"].astype(np.float32) - 3)


def test_each_layer_reads_what_is_given(tmp_path: Path) -> None:
    """A wrong tensor changes its readers' values and not its own."""
    g = Onnx((1, 1, 2, 2), opset=17)
    first = g.q("x", 0.5)
    second = g.q(g.node("Relu", g.dq(first, 0.5)), 0.25)
    path = saved(g, g.dq(second, 0.25), tmp_path / "m.onnx")
    model = OnnxRuntimeModel(path, {"first": first, "second": second})
    x = np.array([1, -1, 2, 3], np.float32).reshape(1, 1, 2, 2)
    given = {"first": np.full((1, 1, 2, 2), 5, np.int8), "second": np.zeros((1, 1, 2, 2), np.int8)}
    result, traced = model.run_and_trace(x, given)
    assert traced["first"].ravel().tolist() == [2, -2, 4, 6]
    assert traced["second"].ravel().tolist() == [10] * 4
    assert result.ravel().tolist() == [1, 0, 2, 3], "the result is of the model left to itself"
    other = {"second": np.zeros((1, 2, 2), np.int8)}
    assert model.run_and_trace(x, other)[1] == {}, "shapes differ: nothing to compare"


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "m.onnx", "QDQ")
    library = tvm_q4.compile(path)
    module = tvm_q4.load_model(path)
    with pytest.raises(InputError, match=r"onnxruntime runs \.onnx files, a module is none"):
        tvm_q4.verify(library, module, onnxruntime=True)
    tvm_q4.inspect(path, recipe=tmp_path / "recipe")
    with pytest.raises(InputError, match=r"model '.*recipe' is none; leave out --onnxruntime"):
        tvm_q4.verify(library, tmp_path / "recipe", onnxruntime=True)
    with pytest.raises(InputError, match="onnxruntime cannot load"):
        OnnxRuntimeModel(path, {"a": "no such tensor"})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentMismatch, match=r'onnxruntime; .* "tvm-q4\[bench\]"'):
        tvm_q4.verify(library, path, onnxruntime=True)


def test_a_float_model_has_nothing_to_compare(tmp_path: Path) -> None:
    g = Onnx((1, 2, 3, 3), opset=17)
    path = saved(g, g.node("Relu", "x"), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="has no quantized tensors"):
        onnxruntime_model(path, tvm_q4.load_model(path))
