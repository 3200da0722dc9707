"""NVIDIA's form of a recipe: a small network against its README's formulas, and refusals."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.modules import naive_conv2d
from tvm_q4 import ops
from tvm_q4.errors import InputError, Q4Error, UnsupportedError
from tvm_q4.frontend.recipe import read_recipe
from tvm_q4.frontend.recipe_build import build_module
from tvm_q4.frontend.recipe_nvidia import translate
from tvm_q4.meta import model_meta
from tvm_q4.reference import ReferenceExecutor

AWAY = "nearest, ties away from zero"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
FORMULA = (
    "clamp(rint(((p/255 - mean)/std) * 127 / 2.64), -127, 127) in float32, rint = ties to even"
)
SIZE = (9, 7)
TYPES = {
    "u4": [0, 15], "s4": [-8, 7], "s8": [-128, 127], "s16": [-32768, 32767],
    "u16": [0, 65535], "u31": [0, 2**31 - 1], "s32": [-(2**31), 2**31 - 1],
}  # fmt: skip


def conv(
    source: str, output: str, layer: str, shape: tuple[int, ...], in_type: str, **more: Any
) -> dict:
    return {
        "op": "conv2d", "input": source, "output": output, "weight": f"{layer}.weight",
        "bias": f"{layer}.bias", "in_type": in_type, "weight_type": "s4", "bias_type": "s16",
        "out_type": "s32", "in_channels": shape[1], "out_channels": shape[0],
        "kernel": list(shape[2:]), "stride": [1, 1], "padding": [0, 0], "pad_value": 0,
        "dilation": [1, 1], "groups": 1, **more,
    }  # fmt: skip


def requant(
    source: str, output: str, mul: str, shift: int, types: tuple[str, str], clamp: Any
) -> dict:
    return {
        "op": "requant", "input": source, "output": output, "mul": mul, "shift": shift,
        "axis": "channel", "rounding": AWAY, "clamp": clamp, "in_type": types[0],
        "out_type": types[1],
    }  # fmt: skip


def graph() -> dict[str, Any]:
    """Stem, max-pool, one block with a downsampled skip, average pool and a linear layer."""
    u31 = {"in_type": "s32", "out_type": "u31"}
    layers = [
        {
            "op": "input_quant", "input": "pixels", "output": "input", "out_type": "s8",
            "formula": FORMULA, "mean": MEAN, "std": STD, "real_step": 2.64 / 127,
        },
        conv("input", "conv1.acc", "conv1", (4, 3, 3, 3), "s8", stride=[2, 1], padding=[1, 1]),
        {"op": "relu", "input": "conv1.acc", "output": "conv1.relu", **u31},
        requant("conv1.relu", "conv1.out", "conv1.mul", 10, ("u31", "u4"), [0, 15]),
        {
            "op": "maxpool2d", "input": "conv1.out", "output": "maxpool", "kernel": [3, 3],
            "stride": [2, 2], "padding": [1, 1], "pad_value": 0, "in_type": "u4", "out_type": "u4",
        },
        conv("maxpool", "down.acc", "down.0", (5, 4, 1, 1), "u4"),
        requant("down.acc", "down.s8", "down.mul", 3, ("s32", "s8"), [-127, 127]),
        requant("down.s8", "skip", "skip.mul", 4, ("s8", "s32"), None),
        conv("maxpool", "block.acc", "block", (5, 4, 3, 3), "u4", padding=[1, 1]),
        {
            "op": "add", "input": ["block.acc", "skip"], "output": "sum", "in_type": "s32",
            "out_type": "s32",
        },
        {"op": "relu", "input": "sum", "output": "sum.relu", **u31},
        requant("sum.relu", "out", "out.mul", 9, ("u31", "u4"), [0, 15]),
        {
            "op": "global_avgpool", "input": "out", "output": "avgpool", "kernel": [3, 4],
            "formula": "floor((sum over 12 positions + 6) / 12)", "in_type": "u4", "out_type": "u4",
        },
        {
            "op": "linear", "input": "avgpool", "output": "fc.acc", "weight": "fc.weight",
            "bias": "fc.bias", "in_type": "u4", "weight_type": "s8", "bias_type": "s32",
            "out_type": "s32", "in_features": 5, "out_features": 3,
        },
        {
            "op": "divide", "input": "fc.acc", "output": "logits", "divisor": "fc.out_scale",
            "axis": "class", "in_type": "s32", "out_type": "f32",
        },
    ]  # fmt: skip
    return {"name": "small", "types": TYPES, "ops": layers}


def constants() -> dict[str, NDArray]:
    rng = np.random.default_rng(37)
    shapes = {"conv1": (4, 3, 3, 3), "down.0": (5, 4, 1, 1), "block": (5, 4, 3, 3)}
    out: dict[str, NDArray] = {}
    for name, shape in shapes.items():
        out[f"{name}.weight"] = rng.integers(-7, 8, shape, dtype=np.int8)
        out[f"{name}.bias"] = rng.integers(-300, 300, shape[0], dtype=np.int16)
    for name, n, top in (("conv1", 4, 40), ("down", 5, 12), ("skip", 5, 99), ("out", 5, 40)):
        out[f"{name}.mul"] = rng.integers(1, top, n).astype(np.uint16)
    out["out.mul"][2] = 0
    out["fc.weight"] = rng.integers(-127, 128, (3, 5), dtype=np.int8)
    out["fc.bias"] = rng.integers(-999, 999, 3, dtype=np.int32)
    out["fc.out_scale"] = rng.uniform(1, 9, 3).astype(np.float32)
    return out


def save(folder: Path, document: dict, arrays: dict[str, NDArray]) -> Path:
    folder.mkdir()
    (folder / "graph.json").write_text(json.dumps(document))
    np.savez(folder / "model.npz", **arrays)
    return folder


def by_readme(x: NDArray[np.float32], a: dict[str, NDArray]) -> dict[str, NDArray]:
    """The README's formulas in int64, one operator after another."""

    def scaled(v: NDArray, mul: str, shift: int, lo: int, hi: int) -> NDArray[np.int64]:
        p = v * a[mul].astype(np.int64)[None, :, None, None]
        q = np.sign(p) * ((np.abs(p) + ((1 << shift) >> 1)) >> shift)
        return np.clip(q, lo, hi)

    def layer(v: NDArray, name: str, stride: tuple, pad: int) -> NDArray[np.int64]:
        w, b = a[f"{name}.weight"], a[f"{name}.bias"]
        return naive_conv2d(v, w, b, stride, (pad,) * 4, (1, 1), 1, 0)

    t: dict[str, NDArray] = {}
    v = np.rint(x * np.float32(127) / np.float32(2.64))
    t["input"] = np.clip(v, -127, 127).astype(np.int64)
    t["conv1.acc"] = layer(t["input"], "conv1", (2, 1), 1)
    t["conv1.out"] = scaled(np.maximum(t["conv1.acc"], 0), "conv1.mul", 10, 0, 15)
    padded = np.pad(t["conv1.out"], [(0, 0), (0, 0), (1, 1), (1, 1)])
    h, w = (padded.shape[2] - 3) // 2 + 1, (padded.shape[3] - 3) // 2 + 1
    t["maxpool"] = np.array(
        [
            [
                [
                    [p[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max() for j in range(w)]
                    for i in range(h)
                ]
                for p in n
            ]
            for n in padded
        ]
    )
    t["down.acc"] = layer(t["maxpool"], "down.0", (1, 1), 0)
    t["down.s8"] = scaled(t["down.acc"], "down.mul", 3, -127, 127)
    t["skip"] = scaled(t["down.s8"], "skip.mul", 4, -(2**31), 2**31 - 1)
    t["block.acc"] = layer(t["maxpool"], "block", (1, 1), 1)
    t["sum"] = t["block.acc"] + t["skip"]
    t["out"] = scaled(np.maximum(t["sum"], 0), "out.mul", 9, 0, 15)
    t["avgpool"] = (t["out"].sum((2, 3), keepdims=True) + 6) // 12
    t["fc.acc"] = t["avgpool"][:, :, 0, 0] @ a["fc.weight"].astype(np.int64).T + a["fc.bias"]
    t["logits"] = t["fc.acc"].astype(np.float32) / a["fc.out_scale"]
    return t


def test_every_tensor_follows_the_readme(tmp_path: Path) -> None:
    arrays = constants()
    folder = save(tmp_path / "r", graph(), arrays)
    # The sizes 9x7 and 3 x 4 after the pool are what the average pool's kernel states.
    mod = read_recipe(folder, batch=2, image_size=SIZE)
    meta = model_meta(mod)
    assert (meta["name"], meta["transform"]) == ("small", "imagenet")
    x = np.random.default_rng(41).normal(0, 1.2, (2, 3, *SIZE)).astype(np.float32)
    trace, expected = ReferenceExecutor(mod).trace(x), by_readme(x, arrays)
    for name, value in expected.items():
        found = trace[meta["tensor_aliases"].get(name, name)]
        assert np.array_equal(found, value), name
        assert len(np.unique(value)) > 1, name
    assert (trace["sum"] < 0).any() and (trace["down.s8"] < 0).any()


def test_layers_carry_their_names_and_bits(tmp_path: Path) -> None:
    mod = read_recipe(save(tmp_path / "r", graph(), constants()), image_size=SIZE)
    calls = [b.value for b in mod["main"].body.blocks[0].bindings if ops.is_q4(b.value)]
    found = {
        str(c.attrs["name"]): int(c.attrs["weight_bits"]) for c in calls if "weight_bits" in c.attrs
    }
    assert found == {"conv1": 4, "down.0": 4, "block": 4, "fc": 8}
    assert not [c for c in calls if str(c.attrs["name"]).endswith(".relu")]


def test_a_relu_that_a_pool_reads_is_kept(tmp_path: Path) -> None:
    """Max pool on the int32 ReLU, requantized afterwards: the same values behind it."""
    document, arrays = graph(), constants()
    pool, quant = document["ops"][4], document["ops"][3]
    pool.update(input="conv1.relu", output="pooled", in_type="u31", out_type="u31")
    quant.update(input="pooled", output="maxpool")
    document["ops"][3:5] = [pool, quant]
    mod = read_recipe(save(tmp_path / "r", document, arrays), image_size=SIZE)
    x = np.random.default_rng(43).normal(0, 1.2, (1, 3, *SIZE)).astype(np.float32)
    trace, expected = ReferenceExecutor(mod).trace(x), by_readme(x, arrays)
    assert np.array_equal(trace["conv1.relu"], np.maximum(expected["conv1.acc"], 0))
    assert np.array_equal(trace["logits"], expected["logits"])


def change(index: int, **values: Any) -> Callable[[dict, dict], None]:
    return lambda document, _arrays: document["ops"][index].update(values)


def without(index: int, key: str) -> Callable[[dict, dict], None]:
    return lambda document, _arrays: document["ops"][index].pop(key)


def replace(name: str, value: NDArray) -> Callable[[dict, dict], None]:
    return lambda _document, arrays: arrays.update({name: value})


REFUSALS = [
    (lambda d, a: d.update(more=1), "key 'more' is unknown"),
    (lambda d, a: d.pop("types"), "key 'types' is missing"),
    (lambda d, a: d["types"].update(u4=[0]), "type 'u4': bounds"),
    (lambda d, a: d["types"].update(u31=[0, 2**32]), "type 'u31': bounds .* leave int32"),
    (lambda d, a: d.update(ops=[]), "no input_quant"),
    (lambda d, a: d["ops"].pop(0), "reads tensor 'input', which no operator before it makes"),
    (lambda d, a: d["ops"].append(3), "'ops' must be a list of objects"),
    (change(1, op="conv3d"), "op 1 conv3d 'conv1.acc': operator 'conv3d' is unknown"),
    (change(1, op=["conv2d"]), "is unknown"),
    (change(1, extra=1), "op 1 conv2d 'conv1.acc': key 'extra' is unknown"),
    (without(1, "stride"), "key 'stride' is missing"),
    (change(1, output="input"), "output 'input' must be a new name"),
    (change(1, output=5), "output 5 must be a new name"),
    (change(1, input="conv1.acc"), "which no operator before it makes"),
    (change(1, in_type="u4"), "in_type is 'u4', but 'input' is 's8'"),
    (change(1, weight="gone.weight"), "array 'gone.weight' is not in model.npz"),
    (change(1, weight="fc.weight", weight_type="s8"), "expected int8 of rank 4"),
    (change(1, bias_type=None), "type None is not in 'types'"),
    (change(1, kernel=[3, 2]), r"weight is \[4, 3, 3, 3\], stated are \[4, 3, 3, 2\]"),
    (change(1, groups=3), "groups 3"),
    (change(1, pad_value=1), "pad_value 1"),
    (change(1, stride=[0, 1]), "stride is .*, expected two integers from 1"),
    (change(1, padding=[1]), "padding is"),
    (change(0, formula="clamp(floor(p))"), "formula 'clamp.* is not the documented one"),
    (change(0, real_step=0.1), "real_step 0.1 is not 2.64/127"),
    (change(2, out_type="s32"), "out_type 's32' is not 0.."),
    (change(3, rounding="half up"), "rounding 'half up' on axis 'channel'"),
    (without(3, "rounding"), "rounding None"),
    (change(3, shift=32), "shift is 32, expected 0..31"),
    (change(3, shift=True), "shift is True"),
    (change(3, clamp=[0, 16]), "clamp .* leaves out_type 'u4'"),
    (change(3, clamp=[3, 2]), "clamp .* leaves out_type 'u4'"),
    (change(3, clamp=15), "clamp is 15"),
    (change(4, pad_value=-1), "pad_value -1 is not the lowest value"),
    (change(4, in_type="s8", out_type="s8"), "pad_value 0 is not the lowest value"),
    (change(9, input=["block.acc"]), "has 1 inputs"),
    (change(12, formula="floor((sum over 12 positions + 5) / 12)"), "not the nearest mean of 12"),
    (change(12, kernel=[2, 6]), None),
    (change(13, in_features=6), "stated are"),
    (change(14, axis="batch"), "expected a float divisor"),
    (replace("conv1.weight", np.full((4, 3, 3, 3), 8, np.int8)), "leaves -8..7, the range of s4"),
    (replace("conv1.bias", np.full(4, 32768, np.int32)), "leaves -32768..32767, the range of s16"),
    (replace("conv1.bias", np.zeros(4, np.float32)), "is float32 .*, expected integers"),
    (replace("conv1.mul", np.full(4, 65536, np.int32)), "the range of u16"),
    (replace("conv1.mul", np.full(5, 1, np.uint16)), "array multiplier has shape"),
    (replace("fc.out_scale", np.array([1, 0, 1], np.float32)), "not a positive float32"),
    (replace("fc.out_scale", np.array([1, 2, 1], np.int32)), "expected a float divisor"),
    (replace("nobody.weight", np.zeros(1, np.int8)), "'nobody.weight' belongs to no operator"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), REFUSALS)
def test_a_damaged_recipe_is_refused_in_one_line(
    damage: Callable[[dict, dict], None], message: str | None, tmp_path: Path
) -> None:
    document, arrays = copy.deepcopy(graph()), constants()
    damage(document, arrays)
    folder = save(tmp_path / "r", document, arrays)
    if message is None:
        # An image size that the caller gives decides the window, whatever kernel is stated.
        assert read_recipe(folder, image_size=SIZE)
        return
    with pytest.raises((InputError, UnsupportedError), match=message) as found:
        read_recipe(folder, image_size=SIZE)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("odd", [None, [], {}, -1, 1.5, "x", True, [None, None], 2**70], ids=repr)
def test_an_odd_value_anywhere_is_read_or_refused_with_our_errors(odd: Any) -> None:
    """Each value of each operator in turn, in NVIDIA's form and in ours."""
    arrays = constants()
    ours, our_arrays = translate(graph(), arrays, SIZE)
    for document, read in (
        (graph(), lambda d: build_module(*translate(d, arrays, SIZE), 1, SIZE)),
        (ours, lambda d: build_module(d, our_arrays, 1, SIZE)),
    ):
        refused = 0
        for entry in document["ops"]:
            for key, value in entry.items():
                entry[key] = odd
                try:
                    read(document)
                except Q4Error as error:
                    refused += 1
                    assert "\n" not in str(error)
                entry[key] = value
        assert refused > 100


def test_a_stored_shift_must_agree(tmp_path: Path) -> None:
    document, arrays = graph(), constants()
    arrays["conv1.requant_mul"] = arrays.pop("conv1.mul")
    document["ops"][3]["mul"] = "conv1.requant_mul"
    for i, (stored, fits) in enumerate(((10, True), (11, False), ([10, 10], False))):
        arrays["conv1.requant_shift"] = np.array(stored, np.int32)
        folder = save(tmp_path / str(i), document, arrays)
        if fits:
            assert read_recipe(folder, image_size=SIZE)
            continue
        with pytest.raises(InputError, match=r"shift is 10, but array 'conv1.requant_shift' says"):
            read_recipe(folder, image_size=SIZE)


def test_without_an_image_size_the_pool_must_cover_224(tmp_path: Path) -> None:
    folder = save(tmp_path / "r", graph(), constants())
    with pytest.raises(
        InputError, match=r"kernel is \[3, 4\], its input .* 224x224; give the image"
    ):
        read_recipe(folder)
