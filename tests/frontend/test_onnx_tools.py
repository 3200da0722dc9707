"""ONNX models as quantization tools write them, on a small ResNet: bit-exact, layer by layer.

The tools are onnxruntime's static quantizer, Brevitas (QCDQ and QONNX) and torchao with torch's
exporter. Where biases are quantized in the file, every element equals onnxruntime's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests.frontend.onnx_models import torch_tool
from tests.frontend.onnx_models.checks import check_model
from tests.frontend.onnx_models.networks import export_float, images, small_resnet

ort = pytest.importorskip("tests.frontend.onnx_models.ort", reason="needs onnx and onnxruntime")
LAYERS = ["conv1", "layer1.conv1", "layer1.conv2", "layer1.downsample", "fc"]
slow = pytest.mark.slow


@pytest.fixture
def network() -> nn.Module:
    return small_resnet()


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_float(small_resnet(), tmp_path_factory.mktemp("onnx") / "float.onnx")


def quantized(model: Path, folder: Path, form: str, activation: str, **options) -> Path:
    """What onnxruntime makes of it. 7-bit weights where its kernels may saturate without VNNI."""
    narrow = (form, activation) == ("QOperator", "u8")
    return ort.quantize_static(
        model, folder / "model.onnx", [images(4)], form=form, activation=activation,
        reduce_range=narrow, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("form", "activation", "per_channel"),
    [
        ("QDQ", "s8", True),
        ("QOperator", "u8", False),
        pytest.param("QDQ", "u8", False, marks=slow),
        pytest.param("QDQ", "u8", True, marks=slow),
        pytest.param("QDQ", "s8", False, marks=slow),
        pytest.param("QOperator", "u8", True, marks=slow),
        pytest.param("QOperator", "s8", False, marks=slow),
        pytest.param("QOperator", "s8", True, marks=slow),
    ],
)
def test_onnxruntime_static(
    form: str, activation: str, per_channel: bool, float_model: Path, tmp_path: Path
) -> None:
    path = quantized(float_model, tmp_path, form, activation, per_channel=per_channel)
    found = check_model(path, images(3, seed=5), batch=2, tensors=7)
    assert found.equal == 1
    assert found.bits == dict.fromkeys(LAYERS, (8, 8))
    assert found.source == {
        "format": "onnx", "opset": "17", "quantization": form, "tool": "onnx.quantize 0.1.0",
    }  # fmt: skip


@slow
@pytest.mark.parametrize(
    "options",
    [
        {"extra": {"ActivationSymmetric": True}},  # keeps each Relu in front of its quantizer
        {"activation": "u8", "weight": "u8", "extra": {"WeightSymmetric": True}},
        {"extra": {"QDQOpTypePerChannelSupportToAxis": {"Gemm": 1}}, "per_channel": True},
    ],
    ids=str,
)
def test_onnxruntime_options(options: dict, float_model: Path, tmp_path: Path) -> None:
    path = quantized(float_model, tmp_path, "QDQ", **({"activation": "s8"} | options))
    assert check_model(path, images(2, seed=6), batch=1, tensors=7).equal == 1


@pytest.mark.parametrize(
    ("form", "bits", "per_channel", "dynamo"),
    [
        ("qcdq", 4, True, False),
        ("qcdq", 8, False, True),
        ("qonnx", 4, False, False),
        pytest.param("qcdq", 4, False, True, marks=slow),
        pytest.param("qcdq", 8, True, False, marks=slow),
        pytest.param("qonnx", 4, True, True, marks=slow),
        pytest.param("qonnx", 8, True, False, marks=slow),
    ],
)
def test_brevitas(
    form: str, bits: int, per_channel: bool, dynamo: bool, network: nn.Module, tmp_path: Path
) -> None:
    pytest.importorskip("brevitas")
    pytest.importorskip("onnxoptimizer")
    from tests.frontend.onnx_models import brevitas_tool

    # Brevitas' dynamo export refuses quantized biases.
    model = brevitas_tool.quantized(network, bits, per_channel=per_channel, bias=not dynamo)
    path = brevitas_tool.export(model, tmp_path / "model.onnx", form, dynamo=dynamo)
    found = check_model(path, images(3, seed=5), batch=2, tensors=6)
    assert found.equal > 0.8 if dynamo else found.equal == 1
    assert list(found.bits.values()) == [(bits, bits)] * len(LAYERS)
    assert found.source["quantization"] == form.upper()
    assert found.source["tool"].startswith("pytorch 2.")


@pytest.mark.parametrize("opset", [None, pytest.param(23, marks=slow)])
def test_torchao_through_torch(opset: int | None, network: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    path = torch_tool.export(torch_tool.quantized(network), tmp_path / "m.onnx", opset=opset)
    found = check_model(path, images(3, seed=5), batch=2, tensors=7)
    assert found.equal > 0.99
    assert found.bits == dict.fromkeys(LAYERS, (8, 8))
    assert found.source["opset"] == str(opset or 20)
