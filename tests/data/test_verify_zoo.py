"""``verify`` on `zoo:` models: bit-exact whatever the bits, the batch and the image size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tvm_q4
from tvm_q4.frontend import load_model
from tvm_q4.library import Library

ODD = (61, 45)
"""Height and width that no tile, vector or stride divides."""
MIXED = {
    "format": "tvm-q4/bit-config",
    "version": 1,
    "default": {"weight": 8, "activation": 8},
    "layers": {
        "layer1.0.conv1": {"weight": 4, "activation": 4},
        "layer1.0.conv2": {"weight": 4, "activation": 8},
        "layer1.1.conv2": {"weight": 4, "activation": 4},
        "layer2.0.conv1": {"weight": 4, "activation": 4},
        "layer2.0.downsample.0": {"weight": 4, "activation": 4},
        "layer2.1.conv1": {"weight": 4, "activation": 4},
        "layer3.0.conv2": {"weight": 4, "activation": 4},
        "layer3.1.conv1": {"weight": 4, "activation": 8},
    },
}
"""As HAWQ's plans are: 4 and 8 bits in turn, one precision for the readers of one tensor."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bit config above as a file."""
    path = tmp_path_factory.mktemp("config") / "mixed.json"
    path.write_text(json.dumps(MIXED), encoding="utf-8")
    return path


def compiled(spec: str, batch: int, size: tuple[int, int] | None = None) -> Library:
    """A library, verified: every tensor that it stores, and its result."""
    mod = load_model(spec, batch=batch, image_size=size, require_quantized=True)
    library = tvm_q4.compile(mod, require_integer_only=True)
    report = tvm_q4.verify(library, mod)
    assert report["bit_exact"], report["first_mismatch"]
    assert report["n"] == max(2, batch)
    assert report["output"] == {"equal": 1.0, "max_step": 0}
    stored = [row for row in report["layers"] if row["checked"]]
    assert len(stored) >= len(library.metadata["calls"])
    assert all(row["equal"] == 1.0 for row in stored)
    # Against the fake-quantized model each layer by itself is off by a rounding at most.
    assert max(row.get("framework_max_step", 0) for row in stored) <= 1
    return library


def precisions(library: Library) -> dict[str, tuple[int, int]]:
    """Weight and activation bits of the layers that have weights."""
    return {
        x["name"]: (x["weight_bits"], x["activation_bits"])
        for x in library.metadata["layers"]
        if x["params"]
    }


def test_resnet20_w4a4_in_batches_of_three() -> None:
    library = compiled("zoo:resnet20-cifar@uniform4", 3)
    assert library.input.shape == (3, 3, 32, 32)
    assert list(precisions(library).values()).count((4, 4)) == 20


def test_resnet18_w8a8_at_an_odd_size() -> None:
    library = compiled("zoo:resnet18@uniform8", 1, ODD)
    assert library.input.shape == (1, 3, *ODD)
    assert set(precisions(library).values()) == {(8, 8)}


def test_bits_chosen_layer_by_layer(mixed: Path) -> None:
    """Each layer has the bits that the file gives it, in one library that is still bit-exact."""
    library = compiled(f"zoo:resnet20-cifar@{mixed}", 1, ODD)
    bits = {name: (b["weight"], b["activation"]) for name, b in MIXED["layers"].items()}
    found = precisions(library)
    assert len(found) == 22
    assert found == {name: bits.get(name, (8, 8)) for name in found}
    assert bits.keys() <= found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize(
    "spec",
    [
        "resnet18@uniform8",
        "resnet18@uniform4",
        "resnet50@w4a8",
        "resnext50_32x4d@uniform4",
        "resnet20-cifar@uniform4",
        "resnet18@MIXED",
    ],
)
def test_every_model_and_batch_at_an_odd_size(spec: str, batch: int, mixed: Path) -> None:
    compiled(f"zoo:{spec.replace('MIXED', str(mixed))}", batch, ODD)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "batch"),
    [
        ("resnet18@uniform8", 8),
        ("resnet18@uniform4", 3),
        ("resnet18@MIXED", 1),
        ("resnet50@uniform8", 1),
        ("resnet50@w4a8", 3),
        ("resnet50@uniform4", 8),
        ("resnext50_32x4d@uniform4", 1),
        ("resnet20-cifar@uniform4", 8),
        ("inception_v3@uniform8", 1),
    ],
)
def test_every_model_at_its_own_size(spec: str, batch: int, mixed: Path) -> None:
    library = compiled(f"zoo:{spec.replace('MIXED', str(mixed))}", batch)
    if "50" in spec:
        limit = 30_000_000 if "uniform8" in spec else 16_000_000
        assert library.path.stat().st_size < limit
