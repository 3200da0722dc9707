"""Real networks through other tools into ONNX: bit-exact, and as onnxruntime layer by layer.

ResNet-20 for CIFAR-10 with its published weights, and torchvision's ResNet-18 and ResNet-50 with
random ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvm_q4
from tests.frontend.onnx_models import torch_tool
from tests.frontend.onnx_models.checks import check_model
from tests.frontend.onnx_models.networks import export_float, images, with_statistics
from tests.models.qat_resnet10_mnist import read_safetensors
from tvm_q4.models.resnet_cifar import resnet20
from tvm_q4.quantize import quantize_ptq
from tvm_q4.transforms import TRANSFORMS

ort = pytest.importorskip("tests.frontend.onnx_models.ort", reason="needs onnx and onnxruntime")
pytestmark = pytest.mark.slow
CIFAR = (3, 32, 32)
RIGHT = 4574
"""Of the 5000 images, by the float ResNet-20."""


def cifar(root: Path, file: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images as the published ResNet-20 wants them, and labels."""
    with np.load(root / file) as data:
        pixels, labels = data["x"][:count], data["y"][:count]
    return np.stack([TRANSFORMS["imagenet"].normalise(p) for p in pixels]), labels


@pytest.fixture
def published(data_dir: Callable[..., Path]) -> nn.Module:
    state = read_safetensors(data_dir("resnet20-cifar10", "resnet20.safetensors"))
    network = resnet20("A")
    network.load_state_dict(
        {k.replace("linear.", "fc."): v for k, v in state.items()}, strict=False
    )
    return network.eval()


def random_resnet(name: str) -> nn.Module:
    from tvm_q4.frontend.zoo import torchvision_models

    torch.manual_seed(0)
    return with_statistics(getattr(torchvision_models(), name)(weights=None))


def by_onnxruntime(network: nn.Module, folder: Path, x: np.ndarray, **options) -> Path:
    path = export_float(network, folder / "float.onnx", x.shape[1:])
    return ort.quantize_static(path, folder / "model.onnx", np.split(x, len(x) // 4), **options)


def test_resnet20_by_onnxruntime(
    published: nn.Module, data_dir: Callable[..., Path], tmp_path: Path
) -> None:
    """W8A8 QDQ: at most half a point below the float model on 5000 images."""
    root = data_dir("cifar10")
    train, _ = cifar(root, "train_15k.npz", 128)
    x, labels = cifar(root, "test_a.npz")
    path = by_onnxruntime(published, tmp_path, train, activation="s8", per_channel=True)
    found = check_model(path, x[:8], batch=8, tensors=21)
    assert found.equal > 0.999
    report = tvm_q4.evaluate(tvm_q4.compile(path, batch=8), (x, labels))
    assert report["correct"] >= RIGHT - 25


def test_resnet20_by_torchao(
    published: nn.Module, data_dir: Callable[..., Path], tmp_path: Path
) -> None:
    """PT2E written by torch as ONNX: the integers of the program itself."""
    pytest.importorskip("onnxscript")
    root = data_dir("cifar10")
    train = torch.from_numpy(cifar(root, "train_15k.npz", 64)[0])
    program = quantize_ptq(published, (train[:2],), [train], "uniform8")
    path = torch_tool.export(program, tmp_path / "model.onnx")
    x, _ = cifar(root, "test_a.npz", 8)
    found = check_model(path, x, batch=8, tensors=20)
    assert found.equal > 0.99
    ours, theirs = (tvm_q4.compile(m, batch=8).run(x) for m in (path, program))
    assert np.abs(ours - theirs).max() < 0.5


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_resnet18_by_onnxruntime(form: str, tmp_path: Path) -> None:
    x = images(8, (3, 96, 80))
    path = by_onnxruntime(
        random_resnet("resnet18"), tmp_path, x, form=form, per_channel=True, reduce_range=True
    )
    found = check_model(path, x[:2], batch=2, tensors=23)
    assert found.equal > 0.999


@pytest.mark.parametrize(
    ("form", "bits", "dynamo"), [("qcdq", 4, False), ("qcdq", 8, True), ("qonnx", 4, True)]
)
def test_resnet18_by_brevitas(form: str, bits: int, dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("brevitas")
    pytest.importorskip("onnxoptimizer")
    from tests.frontend.onnx_models import brevitas_tool

    size = (3, 64, 48)
    model = brevitas_tool.quantized(
        random_resnet("resnet18"), bits, per_channel=True, bias=not dynamo, size=size
    )
    path = brevitas_tool.export(model, tmp_path / "m.onnx", form, dynamo=dynamo, size=size)
    x = images(2, size, seed=5)
    found = check_model(path, x, batch=2, tensors=22, same_class=not dynamo)
    assert found.equal > 0.7


def test_resnet50_by_onnxruntime(tmp_path: Path) -> None:
    x = images(4, (3, 224, 224))
    path = by_onnxruntime(random_resnet("resnet50"), tmp_path, x, activation="s8", per_channel=True)
    found = check_model(path, x[:1], batch=1, tensors=56)
    assert found.equal > 0.999
