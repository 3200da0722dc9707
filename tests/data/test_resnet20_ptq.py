"""Others' float ResNet-20 for CIFAR-10, quantized after training and compiled.

Source: akamaster/pytorch_resnet_cifar10, "option A" shortcuts, 91.73 %; see the data folder's
README. Measured: examples/quantize/README.md, Post-training quantization.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tvm_q4
from tests.models.qat_resnet10_mnist import read_safetensors
from tvm_q4.frontend.torch_export import import_exported
from tvm_q4.library import Library
from tvm_q4.models.resnet_cifar import CifarResNet, resnet20
from tvm_q4.quantize import quantize_ptq
from tvm_q4.quantize.adaround import AdaRoundOptions
from tvm_q4.transforms import TRANSFORMS

RIGHT = 4574
"""Of the 5000 images, in float."""
BATCH = 8


@pytest.fixture(scope="module")
def root(data_dir: Callable[..., Path]) -> Path:
    data_dir("cifar10", "test_a.npz")
    return data_dir("resnet20-cifar10").parent


@pytest.fixture(scope="module")
def network(root: Path) -> CifarResNet:
    """The float network with the published weights."""
    state = read_safetensors(root / "resnet20-cifar10" / "resnet20.safetensors")
    model = resnet20("A")
    missing, unexpected = model.load_state_dict(
        {k.replace("linear.", "fc."): v for k, v in state.items()}, strict=False
    )
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model.eval()


@pytest.fixture(scope="module")
def program(network: CifarResNet, root: Path) -> torch.export.ExportedProgram:
    """W8A8, calibrated on 256 training images."""
    x, _ = images(root, "train_15k.npz", 256)
    return quantize_ptq(network, (x[:2],), x.split(64), "uniform8")


@pytest.fixture(scope="module")
def library(program: torch.export.ExportedProgram) -> Library:
    return tvm_q4.compile(program, batch=BATCH, require_integer_only=True)


def images(root: Path, file: str, count: int | None = None) -> tuple[torch.Tensor, NDArray]:
    """First images, normalised by ImageNet's mean and deviation as the authors did, and labels."""
    with np.load(root / "cifar10" / file) as data:
        pixels, labels = data["x"][:count], data["y"][:count]
    normalise = TRANSFORMS["imagenet"].normalise
    return torch.from_numpy(np.stack([normalise(p) for p in pixels])), labels


def float_logits(root: Path) -> NDArray[np.float32]:
    """Torch's logits of the float network on ``test_a``, recorded by others' script."""
    return np.load(root / "resnet20-cifar10" / "resnet20_logits_test_a.npy")


def test_the_float_network_is_the_published_one(network: CifarResNet, root: Path) -> None:
    x, _ = images(root, "test_a.npz", 100)
    with torch.no_grad():
        found = network(x).numpy()
    recorded = float_logits(root)
    np.testing.assert_allclose(found, recorded[:100], atol=1e-4)
    with np.load(root / "cifar10" / "test_a.npz") as data:
        assert int((recorded.argmax(1) == data["y"]).sum()) == RIGHT


def test_agreement_with_float(library: Library, root: Path) -> None:
    x, _ = images(root, "test_a.npz", 500)
    parent = float_logits(root)[:500].argmax(1)
    assert (library.run(x.numpy()).argmax(1) == parent).mean() >= 0.98


def test_verified_on_real_images(
    library: Library, program: torch.export.ExportedProgram, root: Path
) -> None:
    """Bit-exact, and at most one step from the fake-quantized model in each layer by itself."""
    x, _ = images(root, "test_a.npz", 12)
    report = tvm_q4.verify(library, import_exported(program, batch=BATCH), x.numpy())
    assert report["bit_exact"], report["first_mismatch"]
    assert report["top1_agreement"] >= 11 / 12
    steps = [r["framework_max_step"] for r in report["layers"] if "framework_max_step" in r]
    assert len(steps) >= 20
    assert max(steps) <= 1


def test_every_layer_runs_in_8_bits(library: Library) -> None:
    layers = [x for x in library.metadata["layers"] if x["params"]]
    assert len(layers) == 20, "19 convolutions and fc; padded shortcuts have no weights"
    assert {(x["weight_bits"], x["activation_bits"]) for x in layers} == {(8, 8)}


def test_at_most_two_tenths_of_a_point_are_lost_at_8_bits(library: Library, root: Path) -> None:
    assert right(library, root) >= RIGHT - 0.002 * 5000


@pytest.mark.slow
@pytest.mark.parametrize("config", ["uniform4", "w4a8"])
def test_at_most_a_point_and_a_half_is_lost_at_4_bits(
    network: CifarResNet, root: Path, config: str
) -> None:
    """In a third of the default's steps and half its images; four points are allowed."""
    x, _ = images(root, "train_15k.npz", 256)
    options = AdaRoundOptions(iterations=150)
    program = quantize_ptq(
        network, (x[:2],), x.split(64), config, rounding="adaround", rounding_options=options
    )
    library = tvm_q4.compile(program, batch=BATCH, require_integer_only=True)
    assert right(library, root) >= RIGHT - 0.015 * 5000


def right(library: Library, root: Path) -> int:
    """Right answers among the 5000."""
    x, labels = images(root, "test_a.npz")
    report = tvm_q4.evaluate(library, (x.numpy(), labels))
    assert report["n"] == 5000
    return report["correct"]
