"""Bit configs: presets, JSON form, which layers stay at 8 bit, and what is refused."""

import json

import pytest

from tvm_q4.errors import InputError
from tvm_q4.quantize.config import PRESETS, BitConfig, LayerBits, load_bit_config

NAMES = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "fc"]
KEPT = ["conv1", "fc"]


@pytest.mark.parametrize(
    ("preset", "bits"), [("uniform8", (8, 8)), ("uniform4", (4, 4)), ("w4a8", (4, 8))]
)
def test_preset_keeps_first_and_last_layer_at_eight_bit(preset, bits):
    resolved = load_bit_config(preset).resolve(NAMES, KEPT)
    assert resolved["conv1"] == resolved["fc"] == LayerBits(8, 8)
    assert resolved["layer1.0.conv1"] == resolved["layer1.0.conv2"] == LayerBits(*bits)


def test_named_layer_overrides_default_and_the_edge_rule():
    config = BitConfig(LayerBits(4, 4), {"layer1.0.conv2": LayerBits(8, 8), "fc": LayerBits(4, 8)})
    resolved = config.resolve(NAMES, KEPT)
    assert resolved == {
        "conv1": LayerBits(8, 8),
        "layer1.0.conv1": LayerBits(4, 4),
        "layer1.0.conv2": LayerBits(8, 8),
        "fc": LayerBits(4, 8),
    }


def test_unknown_layer_is_an_error_that_suggests_a_name():
    config = BitConfig(LayerBits(8, 8), {"layer1.0.conv3": LayerBits(4, 4)})
    with pytest.raises(InputError, match=r"'layer1\.0\.conv3'.*did you mean 'layer1\.0\.conv"):
        config.resolve(NAMES, KEPT)


@pytest.mark.parametrize("pair", [(8, 4), (2, 2), (4, 16), (8, 0)])
def test_unsupported_precision_is_an_error(pair):
    with pytest.raises(InputError, match=f"W{pair[0]}A{pair[1]} is not a supported precision"):
        LayerBits(*pair)


def test_file_round_trip(tmp_path):
    config = BitConfig(LayerBits(8, 8), {"layer1.0.conv1": LayerBits(4, 4)})
    path = tmp_path / "bits.json"
    path.write_text(json.dumps(config.to_dict()))
    assert load_bit_config(path) == config
    assert load_bit_config(str(path)) == config
    assert load_bit_config(config.to_dict()) == config
    assert load_bit_config(config) is config


def test_default_may_be_left_out():
    data = {"format": "tvm-q4/bit-config", "version": 1, "layers": {}}
    assert BitConfig.from_dict(data) == PRESETS["uniform8"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not a bit config"),
        ({"format": "tvm-q4/layer-table", "version": 1}, "not a bit config"),
        ({"format": "tvm-q4/bit-config", "version": 2}, "version 2"),
        ({"format": "tvm-q4/bit-config", "version": 1, "layers": []}, "'layers' is list"),
        (
            {"format": "tvm-q4/bit-config", "version": 1, "layers": {"a": 4}},
            "layer 'a'.*bits are 4",
        ),
        ({"format": "tvm-q4/bit-config", "version": 1, "default": {"weight": 4}}, "default: bits"),
        (
            {
                "format": "tvm-q4/bit-config",
                "version": 1,
                "layers": {"a": {"weight": 8, "activation": 4}},
            },
            "layer 'a'.*W8A4",
        ),
        (
            {
                "format": "tvm-q4/bit-config",
                "version": 1,
                "default": {"weight": True, "activation": 8},
            },
            "default: bits",
        ),
    ],
)
def test_bad_json_object_is_an_error_that_names_the_place(data, message):
    with pytest.raises(InputError, match=message):
        BitConfig.from_dict(data, "bits.json")


def test_missing_file_and_bad_json(tmp_path):
    with pytest.raises(InputError, match="neither a preset"):
        load_bit_config("uniform5")
    path = tmp_path / "bits.json"
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_bit_config(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="neither a preset"):
        load_bit_config(path)
