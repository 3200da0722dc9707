"""ONNX graphs as a whole: batch, image size, layout, order, names, facts, external data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvm_q4.errors import InputError
from tvm_q4.frontend import load_model
from tvm_q4.meta import model_meta
from tvm_q4.model_report import describe_model
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.pipeline import to_integer

onnx = pytest.importorskip("onnx")

from tests.frontend.onnx_graphs import Onnx, q4_calls, ramp, run_onnx  # noqa: E402
from tvm_q4.frontend.onnx_qdq import import_onnx  # noqa: E402

RNG = np.random.default_rng(3)


def network(shape: tuple, node: str = "", weight: str = "features.0.weight", **options) -> Onnx:
    """A convolution between quantizers and a linear layer; the result is the last tensor."""
    b = Onnx(shape, **options)
    w = b.dq(b.const(RNG.integers(-9, 9, (4, 3, 3, 3)), "int8", weight), 0.01)
    y = b.node("Conv", b.qdq("x", 0.05), w, name=node, strides=[2, 2])
    y = b.node("GlobalAveragePool", b.qdq(y, 0.04), name="/avgpool/GlobalAveragePool")
    y = b.node("Reshape", b.qdq(y, 0.02), b.const([1, -1], "int64"))
    w = b.dq(b.const(RNG.integers(-9, 9, (5, 4)), "int8", "fc.weight"), 0.02)
    b.node("Gemm", y, w, transB=1, name="/fc/Gemm", out="logits")
    return b


@pytest.mark.parametrize("recorded", [1, "N", None, 0, 4])
def test_any_recorded_batch_is_specialised(recorded: object) -> None:
    b = network((1, 3, 8, 8))
    reshape = next(n for n in b.nodes if n.op_type == "Reshape")
    reshape.input[1] = b.const([recorded if recorded in (1, 4) else 0, -1], "int64")
    shape = b.input.type.tensor_type.shape.dim[0]
    shape.Clear()
    if isinstance(recorded, str):
        shape.dim_param = recorded
    elif recorded is not None:
        shape.dim_value = recorded
    mod = import_onnx(b.model("logits"), batch=2)
    one = import_onnx(network((1, 3, 8, 8)).model("logits"))
    assert [int(d) for d in mod["main"].params[0].ty.shape] == [2, 3, 8, 8]
    assert [int(d) for d in one["main"].params[0].ty.shape] == [1, 3, 8, 8]
    assert ReferenceExecutor(mod).run(ramp(2, 3, 8, 8)).shape == (2, 5)


def test_the_image_size_is_specialised() -> None:
    b = network((1, 3, "H", "W"))
    with pytest.raises(InputError, match="dynamic image size; give --image-size"):
        import_onnx(b.model("logits"))
    mod = import_onnx(b.model("logits"), image_size=(6, 9))
    x = ramp(1, 3, 6, 9)
    np.testing.assert_allclose(
        ReferenceExecutor(mod).run(x), run_onnx(b.model("logits"), x), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("quantized", [False, True])
def test_a_channels_last_input_is_taken_as_nchw(quantized: bool) -> None:
    """As tf2onnx writes it; the quantizer of ONNX Runtime puts Q and DQ before the transpose."""
    b = Onnx((2, 5, 4, 3))
    x = b.qdq("x", 0.05, 3) if quantized else "x"
    x = b.node("Transpose", x, perm=[0, 3, 1, 2])
    y = b.node("Conv", b.qdq(x, 0.05, 3), b.const(ramp(2, 3, 1, 1)))
    model, image = b.model(y), ramp(2, 5, 4, 3)
    mod = import_onnx(model)
    assert [int(d) for d in mod["main"].params[0].ty.shape] == [2, 3, 5, 4]
    found = ReferenceExecutor(mod).run(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(found, run_onnx(model, image), rtol=0, atol=1e-6)
    assert model_meta(mod)["source_details"]["input"] == "NHWC"
    last = "input.q2.dq" if quantized else "input.dq"
    assert list(q4_calls(to_integer(mod))) == ["input", last]  # the second quantizer is the first


def test_a_transpose_of_an_input_that_is_read_otherwise_too_stays() -> None:
    b = Onnx((1, 3, 3, 3))
    both = b.node("Add", "x", b.node("Transpose", "x", perm=[0, 3, 1, 2]))
    mod = import_onnx(b.model(both))
    x = ramp(1, 3, 3, 3)
    np.testing.assert_array_equal(ReferenceExecutor(mod).run(x), x + x.transpose(0, 3, 1, 2))
    assert "input" not in model_meta(mod)["source_details"]


@pytest.mark.parametrize(
    ("node", "weight", "name"),
    [
        ("", "layer1.0.conv1.weight", "layer1.0.conv1"),
        ("stem", "layer1.0.conv1.weight_quantized", "layer1.0.conv1"),
        ("/layer1/layer1.0/conv1/Conv", "onnx::Conv_193", "layer1.0.conv1"),
        ("Conv__440_quant", "kernel_fused_bn", "Conv__440"),
        ("/Conv", "w", "conv"),
    ],
)
def test_layers_are_named_after_their_weight_or_their_node(node, weight, name) -> None:
    mod = import_onnx(network((1, 3, 8, 8), node, weight).model("logits"))
    calls = list(q4_calls(mod))
    assert f"{name}.out" in calls and f"{name}.weight.dq" in calls
    assert {"avgpool.out", "fc.weight.dq"} < set(calls)
    layers = describe_model(to_integer(mod))["layers"]
    assert [layer["name"] for layer in layers] == [name, "fc"]


def test_nodes_may_stand_in_any_order_and_unused_ones_count_for_nothing() -> None:
    b = network((1, 3, 8, 8))
    sorted_mod = import_onnx(b.model("logits"))
    b.node("Foo", "x", domain="unknown")
    b.nodes.reverse()
    x = ramp(1, 3, 8, 8)
    shuffled = import_onnx(b.model("logits"))
    np.testing.assert_array_equal(
        ReferenceExecutor(shuffled).run(x), ReferenceExecutor(sorted_mod).run(x)
    )


def test_constant_nodes_are_parameters() -> None:
    b = Onnx((1, 3, 2, 2))
    low = b.node("Constant", value_float=-0.5)
    high = b.node("Constant", value=onnx.numpy_helper.from_array(np.float32(0.25)))
    shape = b.node("Constant", value_ints=[0, -1])
    y = b.node("Reshape", b.node("Clip", "x", low, high), shape)
    x = ramp(1, 3, 2, 2)
    found = ReferenceExecutor(import_onnx(b.model(y))).run(x)
    np.testing.assert_array_equal(found, np.clip(x, -0.5, 0.25).reshape(1, -1))


def test_functions_of_the_model_are_put_in_place() -> None:
    b = Onnx((1, 3, 2, 2))
    y = b.node("Twice", "x", domain="local")
    body = [onnx.helper.make_node("Add", ["a", "a"], ["b"])]
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = b.model(y, domains=["local"])
    model.functions.append(onnx.helper.make_function("local", "Twice", ["a"], ["b"], body, opsets))
    x = ramp(1, 3, 2, 2)
    np.testing.assert_array_equal(ReferenceExecutor(import_onnx(model)).run(x), x + x)


def test_a_file_is_loaded_with_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(network((1, 3, 8, 8), opset=17).model("logits", producer_version="3"), path)
    mod = load_model(path, require_quantized=True)
    facts = model_meta(mod)
    assert facts["name"] == "net" and len(facts["sha256"]) == 64
    told = describe_model(to_integer(mod))["model"]
    assert (told["source_format"], told["source_tool"]) == ("onnx", "by hand 3")
    assert told["source_details"] == {"opset": "17", "quantization": "QDQ"}


def test_a_float_model_is_read_where_no_quantized_one_is_asked_for(tmp_path: Path) -> None:
    b = Onnx((1, 3, 4, 4))
    path = tmp_path / "net.onnx"
    onnx.save(b.model(b.node("Relu", "x")), path)
    assert model_meta(load_model(path))["source_details"]["quantization"] == "float"
    with pytest.raises(InputError, match="float model; quantize it first"):
        load_model(path, require_quantized=True)


def test_data_beside_the_model_is_read(tmp_path: Path) -> None:
    path, x = tmp_path / "net.onnx", ramp(1, 3, 8, 8)
    b = network((1, 3, 8, 8))
    want = ReferenceExecutor(import_onnx(b.model("logits"))).run(x)
    onnx.save(
        b.model("logits"), path, save_as_external_data=True, location="net.data", size_threshold=0
    )
    assert (tmp_path / "net.data").stat().st_size > 100
    np.testing.assert_array_equal(ReferenceExecutor(load_model(path)).run(x), want)
