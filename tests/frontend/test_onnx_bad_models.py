"""ONNX files that cannot be read or expressed: one line that says what, where and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tvm_q4.errors import InputError, Q4Error, UnsupportedError
from tvm_q4.frontend import load_model

onnx = pytest.importorskip("onnx")

from tests.frontend.onnx_graphs import Onnx  # noqa: E402
from tvm_q4.frontend.onnx_qdq import import_onnx  # noqa: E402


def message(error: pytest.ExceptionInfo[Q4Error]) -> str:
    """The error's text, checked to be one line."""
    text = str(error.value)
    assert "\n" not in text and error.value.exit_code == 2 and len(text) < 600
    return text


def refused(model: onnx.ModelProto, *parts: str, kind: type[Q4Error] = UnsupportedError) -> None:
    with pytest.raises(kind) as error:
        import_onnx(model)
    text = message(error)
    assert [p for p in parts if p not in text] == [], text


def layer(b: Onnx | None = None) -> tuple[Onnx, onnx.ModelProto]:
    """A quantized convolution, its tensors named."""
    b = b or Onnx()
    w = b.dq(b.const(np.ones((4, 3, 1, 1)), "int8", "w"), 0.1)
    return b, b.model(b.qdq(b.node("Conv", b.qdq("x", 0.1), w, name="conv"), 0.2))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(layer()[1], path)
    return path


@pytest.mark.parametrize("keep", [0, 1, 10, 0.3, 0.7, -1, -20])
def test_a_truncated_file(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else int(keep)])
    with pytest.raises(Q4Error) as error:
        load_model(saved)
    message(error)


@pytest.mark.parametrize("data", [b"not a model\n" * 50, bytes(range(256)) * 20, b"\x08\x0a" * 40])
def test_a_file_that_is_no_model(saved: Path, data: bytes) -> None:
    saved.write_bytes(data)
    with pytest.raises(InputError, match=r"net.onnx' is no ONNX model"):
        load_model(saved)


def test_names_that_no_message_could_print(saved: Path) -> None:
    for name in ("two\nlines", "x" * 5000, "bell\x07"):
        _, model = layer()
        model.graph.node[0].name = name
        saved.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=r"net\.onnx' holds the name") as error:
            load_model(saved)
        message(error)
    data = layer()[1].SerializeToString().replace(b"QuantizeLinear", b"Quantize\xff\xfe\xfd\xfcar")
    saved.write_bytes(data)
    with pytest.raises(InputError) as error:
        load_model(saved)
    message(error)


def test_a_folder_or_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_model(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match=r"no graph.json"):
        load_model(tmp_path / "folder.onnx")


def test_an_opset_that_is_not_known() -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in (6, newest + 1):
        refused(Onnx(opset=opset).model("x"), f"opset {opset}", f"7 to {newest}")
    model = layer()[1]
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("my.own", 1))
    refused(model, "no version", kind=InputError)


def test_a_circle() -> None:
    b = Onnx()
    b.node("Add", "x", "second", name="one", out="first")
    b.node("Relu", "first", name="two", out="second")
    refused(b.model("second"), "in a circle", "one", "two", kind=InputError)
    b = Onnx()
    b.node("Relu", "first", name="self", out="first")
    refused(b.model("first"), "in a circle through self", kind=InputError)


def test_tensors_that_nothing_makes() -> None:
    b = Onnx()
    y = b.node("Add", "x", "ghost", name="sum")
    refused(b.model(y), "node 'sum' (Add) reads tensor 'ghost'", kind=InputError)
    refused(b.model("nowhere"), "the model returns tensor 'nowhere'", kind=InputError)


def test_tensors_that_are_made_twice() -> None:
    b = Onnx()
    b.node("Relu", "x", name="one", out="y")
    b.node("Relu", "x", name="two", out="y")
    refused(b.model("y"), "node 'two' (Relu) makes tensor 'y'", "exists", kind=InputError)


def test_results_that_are_not_available() -> None:
    b = Onnx()
    b.nodes.append(
        onnx.helper.make_node("MaxPool", ["x"], ["y", "at"], name="pool", kernel_shape=[2, 2])
    )
    total = b.node("Relu", "at", name="reader")
    refused(b.model(total), "node 'reader' (Relu)", "result 1 of node 'pool' (MaxPool)")


def test_models_of_several_inputs_or_outputs_or_of_other_inputs() -> None:
    b = Onnx()
    y = b.node("Relu", "x")
    refused(b.model(y, "x"), "returns 2 values")
    two = b.model(y)
    two.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, [1]))
    refused(two, "takes 2 tensors")
    refused(Onnx((1, 3)).model("x"), "FLOAT [1, 3]; expected FLOAT [N, C, H, W]")
    ints = Onnx()
    ints.input.type.tensor_type.elem_type = onnx.TensorProto.INT8
    refused(ints.model("x"), "INT8 [1, 3, 6, 5]")
    refused(Onnx((1, -3, 4, 4)).model("x"), "cannot have shape", kind=InputError)
    refused(Onnx((1, 3, 2**20, 2**20)).model("x"), "cannot have shape", kind=InputError)
    b = Onnx()
    refused(b.model(b.node("Identity", b.const([1.0]))), "does not depend on its input")
    b = Onnx()
    refused(b.model(b.q("x", 0.1)), "returns int8", "DequantizeLinear")


def test_blocked_quantization() -> None:
    b = Onnx()
    scale, zero = (b.const(np.ones((4, 3)), "float32"), b.const(np.zeros((4, 3)), "int8"))
    w = b.const(np.ones((4, 6)), "int8")
    node = b.node("DequantizeLinear", w, scale, zero, axis=1, block_size=2, name="blocked")
    refused(b.model(b.node("Add", "x", node)), "node 'blocked'", "blocks of 2")


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT16", "BFLOAT16"])
def test_float_types_without_integer_form(kind: str) -> None:
    b = Onnx()
    made = onnx.helper.make_tensor("w", getattr(onnx.TensorProto, kind), [1], [1.0])
    b.tensors.append(made)
    y = b.node("DequantizeLinear", "w", b.const(1, "float32"), name="dq")
    refused(b.model(b.node("Add", "x", y)), "tensor 'w'", kind)


def test_quantizing_to_float8() -> None:
    b = Onnx()
    kind = onnx.TensorProto.FLOAT8E4M3FN
    y = b.node("QuantizeLinear", "x", b.const(1, "float32"), output_dtype=kind, name="to8")
    refused(b.model(b.node("Relu", y)), "node 'to8' (QuantizeLinear)", "FLOAT8E4M3FN")


def test_scales_that_are_no_scales() -> None:
    for scale in (0, -1, np.nan, np.inf):
        b = Onnx()
        refused(b.model(b.qdq("x", scale)), "(QuantizeLinear)", "not positive and finite")
    b = Onnx()
    refused(b.model(b.qdq("x", [0.1, 0.2, 0.3], [0] * 3)), "'input' has 3 scales", "only weights")
    b = Onnx()
    w = b.dq(b.const(np.ones((4, 3)), "int8"), [0.1] * 5, [0] * 5, axis=0)
    refused(b.model(b.node("Add", "x", w)), "5 scales and 5 zero points for 4 channels")
    b = Onnx()
    w = b.dq(b.const(np.ones((4, 3)), "int8"), [0.1] * 4, [0] * 4, axis=2)
    refused(b.model(b.node("Add", "x", w)), "axis 2 is outside a tensor of 2 dimensions")
    b = Onnx()
    refused(b.model(b.node("QuantizeLinear", "x", "x", name="q")), "'q'", "run time")


def test_dynamic_quantization_is_named_as_such() -> None:
    b = Onnx()
    b.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dyn"))
    y = b.node("DequantizeLinear", "q", "s", "z")
    refused(b.model(y), "node 'dyn' (DynamicQuantizeLinear)", "static")


def test_wrong_inputs_and_attributes_of_a_node() -> None:
    b = Onnx()
    refused(b.model(b.node("Conv", "x", name="c")), "'c'", "inputs are given", kind=InputError)
    b = Onnx()
    refused(b.model(b.node("Relu", "x", alpha=1.0)), "(Relu)", "no attribute 'alpha'")
    b = Onnx()
    w = b.const(np.ones((4, 3, 1, 1)), "float32")
    refused(b.model(b.node("Conv", "x", w, strides="ab")), "'strides'", "another type")
    b = Onnx()
    y = b.node("MaxPool", "x", kernel_shape=[2**40, 1])
    refused(b.model(y), "kernel_shape", "which no tensor")
    b = Onnx()
    body = onnx.helper.make_graph([], "body", [], [])
    y = b.node("If", b.const(True), then_branch=body, else_branch=body, name="branch")
    refused(b.model(y), "node 'branch' (If)", "not supported")


def test_constants_beyond_all_measure_are_not_computed() -> None:
    b = Onnx()
    big = b.node("ConstantOfShape", b.const([2**20, 2**20], "int64"), name="big")
    refused(b.model(b.node("Add", "x", big)), "'big'", "would have shape")
    b = Onnx()
    y = b.node("Pad", "x", b.const([0, 0, 2**15, 0, 0, 0, 2**15, 2**30], "int64"))
    refused(b.model(y), "would have shape")


def external(path: Path, location: str, **entries: str) -> None:
    """Point the weight of the saved model at a file."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def link(folder: Path) -> str:
    (folder.parent / "secret").write_bytes(bytes(12))
    (folder / "link").symlink_to(folder.parent / "secret")
    return "link"


@pytest.mark.parametrize(
    ("location", "entries", "why"),
    [
        ("w.bin", {}, "which is missing"),
        ("../secret", {}, "outside the model's folder"),
        ("/etc/passwd", {}, "outside the model's folder"),
        (link, {}, "outside the model's folder"),
        ("", {}, "outside the model's folder"),
        ("short", {"length": "12"}, "cut off"),
        ("short", {"offset": "99"}, "cut off"),
        ("short", {"offset": "-1"}, "the offset of its data is '-1'"),
        ("short", {"length": "9" * 30}, "the length of its data"),
        ("short", {}, "does not fit INT8 [4, 3, 1, 1]"),
    ],
)
def test_external_data_that_is_missing_or_elsewhere(
    saved: Path, location: str | Callable[[Path], str], entries: dict[str, str], why: str
) -> None:
    folder = saved.parent / "models"
    folder.mkdir()
    path = saved.rename(folder / "net.onnx")
    (saved.parent / "secret").write_bytes(bytes(12))
    (folder / "short").write_bytes(bytes(5))
    external(path, location if isinstance(location, str) else location(folder), **entries)
    with pytest.raises(InputError) as error:
        load_model(path)
    assert "tensor 'w'" in message(error) and why in str(error.value)


def test_data_that_does_not_fit_its_shape() -> None:
    for dims in ([4, 3, 1, 2], [-1], [2**40, 2**40]):
        _, model = layer()
        tensor = next(t for t in model.graph.initializer if t.name == "w")
        del tensor.dims[:]
        tensor.dims.extend(dims)
        refused(model, "tensor 'w'", kind=InputError)


def test_without_the_onnx_package_the_extra_is_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    from tvm_q4.errors import EnvironmentMismatch

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EnvironmentMismatch, match=r'pip install "tvm-q4\[onnx\]"'):
        load_model(saved)
