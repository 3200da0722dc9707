"""Bit configs of HAWQ checkpoints: published ones, files, and inference from the tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.frontend import hawq_checkpoint as made
from tests.frontend.hawq_networks import ARCHITECTURE_OF
from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.hawq.architecture import ARCHITECTURES, find_architecture
from tvm_q4.frontend.hawq.bits import (
    activation_bits,
    activation_scale,
    find_bits,
    published_configs,
)
from tvm_q4.quantize.config import BitConfig, LayerBits

DataDir = Callable[..., Path]
TINY = ARCHITECTURE_OF[made.TINY]
CONV2 = "stage2.unit1.quant_convbn2"


@pytest.fixture
def reference(data_dir: DataDir) -> dict[str, Any]:
    return json.loads(data_dir("hawq-v3", "bit_configs.json").read_text())["configs"]


def weights(layer_bits: dict[str, int]) -> dict[str, np.ndarray]:
    """Just enough of a quantized checkpoint for its weight bits to be inferred."""
    return {f"{k}.weight_integer": np.array([2 ** (b - 1) - 1.0]) for k, b in layer_bits.items()}


def test_published_configs_are_the_repositorys(reference: dict[str, Any]) -> None:
    names: dict[str, set[str]] = {}
    for key, config in reference.items():
        arch, name = key.split("_", 1)
        if arch not in ARCHITECTURES:
            continue
        names.setdefault(arch, set()).add(name)
        architecture = ARCHITECTURES[arch]
        bits, label = find_bits(name, architecture, {}, "file")
        assert label == name
        found = {layer: pair.weight for layer, pair in bits.items()}
        found |= activation_bits(bits, architecture)
        found |= dict.fromkeys(architecture.streams(), 16)
        assert found == config["raw"], key
    assert {arch: set(published_configs(arch)) for arch in names} == names
    assert len(names["resnet18"]) == len(names["resnet50"]) == 11


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_every_published_config_is_inferred_from_integer_weights(
    arch: str, reference: dict[str, Any]
) -> None:
    for name in published_configs(arch):
        raw = reference[f"{arch}_{name}"]["raw"]
        layers = {k: raw[k] for k in ARCHITECTURES[arch].reads()}
        bits, label = find_bits(None, ARCHITECTURES[arch], weights(layers), "file")
        assert {k: (b.weight, b.activation) for k, b in bits.items()} == {
            k: (b, b) for k, b in layers.items()
        }
        assert name in label.split(" = ")


@pytest.fixture
def ranges() -> dict[str, np.ndarray]:
    """Ranges and scales of every quantizer; one of them has 4 bits."""
    arrays = {}
    for act in made.quantizers(made.TINY):
        count = 16 if "int32" in act else 4 if act == "stage2.unit1.quant_act1" else 8
        low, high = np.float32([0 if count == 4 else -0.3]), np.float32([2.7])
        arrays |= {
            f"{act}.x_min": low,
            f"{act}.x_max": high,
            f"{act}.act_scaling_factor": activation_scale(count, low, high).reshape(1),
        }
    return arrays


def test_bits_are_inferred_from_ranges_where_no_integers_are(ranges: dict[str, np.ndarray]) -> None:
    bits, label = find_bits(None, TINY, ranges, "file")
    assert label == "mixed"
    assert {k for k, b in bits.items() if b == LayerBits(4, 4)} == {CONV2}
    assert {k for k, b in bits.items() if b == LayerBits(8, 8)} == set(bits) - {CONV2}
    ranges |= weights({CONV2: 4, "stage2.unit2.quant_convbn1": 4})
    bits, _ = find_bits(None, TINY, ranges, "file")
    assert bits["stage2.unit2.quant_convbn1"] == LayerBits(4, 8), "weights and inputs may differ"


def test_scales_that_do_not_follow_from_their_ranges(ranges: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="at 8 bits; give the bit config of its training"):
        find_bits("uniform8", TINY, ranges, "file")
    ranges["stage2.unit1.quant_act1.act_scaling_factor"] *= np.float32(1.001)
    with pytest.raises(InputError, match=r"scale 0\.18018\d* of 'stage2\.unit1\.quant_act1' does"):
        find_bits(None, TINY, ranges, "file")


def test_bit_config_files_and_objects(tmp_path: Path) -> None:
    config = BitConfig(LayerBits(8, 8), {CONV2: LayerBits(4, 8)})
    path = tmp_path / "bits.json"
    path.write_text(json.dumps(config.to_dict()))
    expected = dict.fromkeys(TINY.reads(), LayerBits(8, 8)) | {CONV2: LayerBits(4, 8)}
    for given in (config, config.to_dict(), path, str(path)):
        assert find_bits(given, TINY, {}, "file")[0] == expected


CONV1, IDENTITY = "stage2.unit1.quant_convbn1", "stage2.unit1.quant_identity_convbn"
REFUSED = {
    "unknown name": (
        "size0.75", {}, "neither a file nor published for tiny; published are uniform8, uniform4"),
    "unknown layer": (
        BitConfig(LayerBits(8, 8), {"layer1.0.conv1": LayerBits(4, 4)}), {}, "'layer1.0.conv1'"),
    "first layer": (
        BitConfig(LayerBits(8, 8), {"quant_output": LayerBits(4, 4)}), {},
        "gives 'quant_output' W4A4; HAWQ keeps it W8A8"),
    "untied": (
        BitConfig(LayerBits(8, 8), {CONV1: LayerBits(4, 4)}), {},
        f"'{CONV1}' and '{IDENTITY}' read the same tensor"),
    "other weights": (
        "uniform8", weights({CONV2: 4}), f"'{CONV2}' reach 7, which are 4 bits, not 8"),
    "too few weights": (None, {}, "does not tell the activation bits of 'quant_input'"),
    "untied weights": (
        None, weights(dict.fromkeys(TINY.reads(), 8) | {CONV1: 4}),
        "does not tell the activation bits of 'stage2.unit1.quant_act'; give the bit config"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_configs_that_do_not_fit_are_refused(case: str) -> None:
    config, arrays, words = REFUSED[case]
    with pytest.raises(InputError) as error:
        find_bits(config, TINY, arrays, "file")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def keys(net: made.Net) -> list[str]:
    return list(made.shapes(net))


def test_architectures_are_known_by_keys_or_name() -> None:
    for name, net in {"resnet18": made.RESNET18, "resnet34": made.RESNET34}.items():
        assert find_architecture(None, None, keys(net), "file").name == name
    for net, choices in (
        (made.RESNET50, "--arch resnet50 (v1, stride on the first 1x1) or --arch resnet50b (v1.5"),
        (made.RESNET101, "--arch resnet101 (v1"),
    ):
        with pytest.raises(InputError) as error:
            find_architecture(None, None, keys(net), "file")
        assert choices in str(error.value)
    assert find_architecture(None, "resnet50b", [], "file").stride_on_3x3
    assert find_architecture("resnet101b", None, [], "file").stride_on_3x3
    assert find_architecture(TINY, "whatever", [], "file") is TINY
    with pytest.raises(InputError, match="'resnet19' is unknown; use resnet18, resnet34"):
        find_architecture("resnet19", None, [], "file")
    with pytest.raises(InputError, match="it is of architecture 'resnet50', not 'resnet50b'"):
        find_architecture("resnet50b", "resnet50", [], "file")
    with pytest.raises(UnsupportedError, match="architecture 'inceptionv3'; known are resnet18"):
        find_architecture(None, "inceptionv3", [], "file")
    with pytest.raises(UnsupportedError, match=r"basic units \[1, 2\], which is none"):
        find_architecture(None, None, keys(made.TINY), "file")
