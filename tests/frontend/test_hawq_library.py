"""Compiled HAWQ checkpoints are bit-exact with the reference executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import tvm_q4
from tests.frontend import hawq_checkpoint as made
from tests.frontend.hawq_networks import ARCHITECTURE_OF, images, published
from tests.frontend.test_hawq_arithmetic import DEAD, MIXED
from tvm_q4.frontend.hawq import load_hawq_model


def check(path: Path, **options: Any) -> dict[str, Any]:
    """Compile a checkpoint, verify it, and return the library's metadata."""
    mod = load_hawq_model(path, **options)
    library = tvm_q4.compile(mod, output=path.with_name("x.so"), require_integer_only=True)
    size = tuple(int(d) for d in mod["main"].params[0].ty.shape)
    report = tvm_q4.verify(library, mod, images(size[0] + 1, *size[2:]))
    assert report["bit_exact"]
    assert {"logits", "quant_act_output"} & {layer["name"] for layer in report["layers"]}
    return library.metadata


def test_one_mixed_unit_with_dead_channels(tmp_path: Path) -> None:
    net, four = made.ONE_UNIT, {"stage1.unit1.quant_convbn2"}
    dead = {"stage1.unit1.quant_convbn2": [0], "stage1.unit1.quant_identity_convbn": [1, 7]}
    state = made.make_state(net, four, seed=30, dead=dead)
    path = made.save_quantized(state, tmp_path / "q.pth.tar")
    metadata = check(path, arch=ARCHITECTURE_OF[net], image_size=(17, 20))
    bits = {layer["name"]: layer["weight_bits"] for layer in metadata["layers"]}
    assert bits == made.layer_bits(net, four)


@pytest.mark.slow
def test_a_small_mixed_network_with_dead_channels(tmp_path: Path) -> None:
    state = made.make_state(made.TINY, MIXED, seed=31, dead=DEAD)
    path = made.save_quantized(state, tmp_path / "q.pth.tar")
    metadata = check(path, arch=ARCHITECTURE_OF[made.TINY], batch=2, image_size=(41, 52))
    bits = {layer["name"]: layer["weight_bits"] for layer in metadata["layers"]}
    assert bits == made.layer_bits(made.TINY, MIXED)
    assert all(layer["weight_bits"] == layer["activation_bits"] for layer in metadata["layers"])
    assert metadata["model"]["source_format"] == "HAWQ checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["half_away", "half_up", "floor"])
def test_other_roundings(tmp_path: Path, rounding: str) -> None:
    net = made.TINY_BOTTLENECK_V1_5
    path = made.save_quantized(made.make_state(net, MIXED, seed=32), tmp_path / "q.pth.tar")
    check(path, arch=ARCHITECTURE_OF[net], rounding=rounding, image_size=(33, 40))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "net", "config"),
    [
        ("resnet18", made.RESNET18, "bops_0.5"),
        ("resnet50", made.RESNET50, "uniform4"),
        ("resnet50b", made.RESNET50B, "uniform8"),
    ],
)
def test_whole_networks(tmp_path: Path, arch: str, net: made.Net, config: str) -> None:
    state = made.make_state(net, published(arch.removesuffix("b"), config), seed=33)
    path = made.save_whole(state, tmp_path / "c.pth.tar", arch)
    check(path, arch=arch, config=config, image_size=(96, 64))
