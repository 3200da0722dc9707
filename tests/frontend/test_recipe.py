"""Our recipe format: export and import of every operator and attribute, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.frontend.recipe_network import whole_network
from tests.modules import module
from tvm_q4 import ops
from tvm_q4.errors import InputError, Q4Error, UnsupportedError
from tvm_q4.frontend import load_model
from tvm_q4.frontend.recipe import read_recipe, write_recipe
from tvm_q4.meta import model_meta, with_meta
from tvm_q4.reference import ReferenceExecutor

RNG = np.random.default_rng(29)


@pytest.fixture(scope="module")
def network() -> tvm.IRModule:
    mod = module((2, 3, 11, 13), "float32", whole_network)
    return with_meta(mod, name="test", classes=["a", "b", "c", "d", "e"], transform="cifar10")


@pytest.fixture(scope="module")
def exported(network: tvm.IRModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "network"
    write_recipe(network, folder)
    return folder


def test_import_of_an_export_is_the_identity(network: tvm.IRModule, exported: Path) -> None:
    again = read_recipe(exported, batch=2)
    tvm.ir.assert_structural_equal(again, network)
    assert model_meta(again) == model_meta(network)
    x = RNG.normal(size=(2, 3, 11, 13)).astype(np.float32)
    before, after = ReferenceExecutor(network).trace(x), ReferenceExecutor(again).trace(x)
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and np.array_equal(tensor, after[name]), name
        assert len(np.unique(tensor)) > 1, f"{name} is constant: this test would prove little"


def test_the_batch_is_free(network: tvm.IRModule, exported: Path) -> None:
    x = RNG.normal(size=(3, 3, 11, 13)).astype(np.float32)
    whole = ReferenceExecutor(read_recipe(exported, batch=3)).run(x)
    assert np.array_equal(whole[:2], ReferenceExecutor(network).run(x[:2]))
    assert np.array_equal(whole[2:], ReferenceExecutor(load_model(exported)).run(x[2:]))
    with pytest.raises(InputError, match="batch is 0"):
        read_recipe(exported, batch=0)


def test_the_image_size_is_free_where_shapes_allow_it(tmp_path: Path) -> None:
    def build(b, x):
        c = b.emit(
            ops.conv2d(x, np.ones((1, 2, 3, 3)), [0], name="c", strides=[1, 1], padding=[0] * 4)
        )
        return b.emit(ops.requantize(c, 1, 4, name="c.out", lo=-8, hi=7, dtype="int8"))

    write_recipe(module((1, 2, 5, 5), "int8", build), tmp_path / "r")
    shape = read_recipe(tmp_path / "r", image_size=(61, 45))["main"].ret_ty.shape
    assert [int(d) for d in shape] == [1, 1, 59, 43]
    with pytest.raises(InputError, match=r"q4.conv2d c: a window of \[3, 3\] does not fit"):
        read_recipe(tmp_path / "r", image_size=(2, 9))


def test_names_of_input_and_moves_never_collide(tmp_path: Path) -> None:
    """The parameter and a moved tensor are called as q4 tensors are."""

    def build(b, x):
        moved = b.emit(relax.op.permute_dims(x, [0, 1, 3, 2]), name_hint="a")
        first = b.emit(ops.requantize(moved, 1, 1, name="x", lo=0, hi=9, dtype="int8"))
        return b.emit(ops.requantize(first, 1, 0, name="a", lo=0, hi=9, dtype="int8"))

    mod = module((1, 2, 3, 4), "int8", build)
    write_recipe(mod, tmp_path / "r")
    tvm.ir.assert_structural_equal(read_recipe(tmp_path / "r"), mod)


@pytest.mark.parametrize(
    ("shape", "dtype", "build", "message"),
    [
        ((1, 2), "float32", lambda _, x: relax.op.nn.relu(x), "relax.nn.relu at"),
        ((2, 2), "int8", lambda _, x: relax.op.reshape(x, [4, 1]), "does not keep the batch of 2"),
        ((2, 2), "int8", lambda _, x: relax.op.permute_dims(x, [1, 0]), "move the batch"),
        ((2, 2), "int8", lambda _, x: relax.op.strided_slice(x, [0], [0], [1], [1]), "never the"),
        ((2, 2), "int8", lambda _, x: relax.op.nn.pad(x, [1, 0, 0, 0]), "with a constant only"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_hold_is_named(
    shape, dtype: str, build: Callable, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        write_recipe(module(shape, dtype, lambda b, x: b.emit(build(b, x))), tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_writing_replaces_a_recipe_and_nothing_else(network: tvm.IRModule, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "graph.json").write_text("old")
    write_recipe(network, folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]
    assert json.loads((folder / "graph.json").read_text())["format"] == "tvm-q4/recipe"
    (folder / "notes.txt").write_text("mine")
    before = (folder / "graph.json").read_bytes()
    with pytest.raises(InputError, match=r"holds 'notes.txt'"):
        write_recipe(network, folder)
    assert (folder / "graph.json").read_bytes() == before
    with pytest.raises(InputError, match="is a file"):
        write_recipe(network, folder / "notes.txt")
    with pytest.raises(InputError, match="cannot be written"):
        write_recipe(network, folder / "notes.txt" / "below")


def copy_with(exported: Path, target: Path, change: Callable[[dict, dict], None]) -> Path:
    """A copy of a recipe whose document and arrays went through `change`."""
    document = json.loads((exported / "graph.json").read_text())
    with np.load(exported / "model.npz") as data:
        arrays = dict(data)
    change(document, arrays)
    target.mkdir()
    (target / "graph.json").write_text(json.dumps(document))
    np.savez(target / "model.npz", **arrays)
    return target


def put(name: str, key: str, value: Any) -> Callable[[dict, dict], None]:
    """Set one attribute of one operator."""

    def change(document: dict, _arrays: dict) -> None:
        next(o for o in document["ops"] if o["name"] == name)[key] = value

    return change


def array(name: str, value: Any) -> Callable[[dict, dict], None]:
    """Replace one array."""
    return lambda _document, arrays: arrays.update({name: np.asarray(value)})


def drop(*path: str) -> Callable[[dict, dict], None]:
    return lambda document, _arrays: document.pop(path[0])


def drop_array(name: str) -> Callable[[dict, dict], None]:
    return lambda _document, arrays: arrays.pop(name)


I32 = np.int32
REFUSALS = [
    (lambda d, a: d.update(version=2), "version 2 is not 'tvm-q4/recipe' version 1"),
    (lambda d, a: d.update(format="other"), "format 'other'"),
    (lambda d, a: d.update(extra=1), "recipe: key 'extra' is unknown"),
    (lambda d, a: d.update(ops=[]), "at least one operator"),
    (lambda d, a: d.update(ops=[3]), "op 0: expected an object, found int"),
    (lambda d, a: d.update(meta=[]), "'meta' must be an object"),
    (lambda d, a: d.update(output="nothing"), "output 'nothing' is no tensor"),
    (lambda d, a: d.update(output=["logits"]), "output .* is no tensor"),
    (drop("input"), "key 'input' is missing"),
    (
        lambda d, a: d["input"].update(shape=[3, 0, 4]),
        "must list sizes of 1 to 2147483647, without",
    ),
    (lambda d, a: d["input"].update(dtype="float64"), "dtype 'float64'"),
    (
        lambda d, a: d["input"].update(shape=[4, 11, 13]),
        "op quantize 'input': array scale has shape",
    ),
    (put("stem", "op", "conv3d"), "operator 'conv3d' is unknown"),
    (put("stem", "op", ["conv2d"]), "is unknown"),
    (put("stem", "name", "input"), "op conv2d 'input': two tensors have this name"),
    (put("stem", "name", 7), "op 1 .conv2d.: name 7 must be a text"),
    (put("stem", "inputs", "input"), "'inputs' must be a list"),
    (put("stem", "inputs", ["gone"]), "'stem': reads tensor 'gone', which does not exist"),
    (put("stem", "inputs", ["stem"]), "'stem': reads tensor 'stem', which is made later"),
    (
        put("stem", "inputs", ["fc"]),
        "which is made later: operators must be in order, without cycles",
    ),
    (put("stem", "inputs", []), "has 0 inputs, expected 1"),
    (put("stem", "inputs", ["x"]), "its input is float32, expected integers"),
    (put("input", "inputs", ["x", "x"]), "has 2 inputs, expected 1"),
    (put("stem", "surprise", 1), "'stem': key 'surprise' is unknown"),
    (put("stem", "strides", [1, "1"]), r"strides is \[1, '1'\], expected a list of 2 integers"),
    (put("stem", "strides", [0, 1]), "strides"),
    (put("stem", "padding", [0, 0, 0, -1]), "padding"),
    (put("stem", "groups", True), "groups is True, expected an integer"),
    (put("stem", "groups", 2), "does not fit an input of 3 channels"),
    (put("stem", "weight_bits", 4), "weights reach -128..127, which 4 bits do not hold"),
    (put("stem", "weight", "gone"), r"array 'gone' \(weight\) is not in model.npz"),
    (put("stem", "weight", None), "'weight' must be the name of an array"),
    (put("stem", "inputs", ["x"]), "expected integers"),
    (put("stem.out", "rounding", "up"), "rounding is 'up', expected one of half_up"),
    (put("stem.out", "lo", 16), r"range 16..15 does not fit its type uint8"),
    (put("stem.out", "hi", 256), "does not fit its type uint8"),
    (put("stem.out", "dtype", "int4"), "dtype is 'int4'"),
    (put("pool", "ceil_mode", 1), "ceil_mode is 1, expected true or false"),
    (put("pool", "dtype", "int8"), "dtype is int8, expected uint8"),
    (put("pool", "pool_size", [99, 1]), "does not fit the input"),
    (put("mean", "dilation", [2, 1]), "dilation"),
    (put("input", "numerator", float("nan")), "numerator is nan"),
    (put("input", "form", "exact"), "form is 'exact'"),
    (put("sum", "form", "fused"), "needs one shift for both sides"),
    (put("fused", "form", "accumulator"), "needs lhs multiplier 1 and shift 0"),
    (put("join", "axis", 0), "axis 0 must lie in 1..3"),
    (put("join", "axis", 2), "differ beyond axis 2"),
    (drop_array("fc.bias"), r"array 'fc.bias' \(bias\) is not in model.npz"),
    (array("unused", I32(1)), "array 'unused' belongs to no operator"),
    (array("fc.bias", np.zeros(5)), "array bias is float64"),
    (array("fc.bias", np.zeros(4, I32)), "bias has 4 values for 5 output channels"),
    (array("fc.weight", np.zeros((5, 2), np.int8)), "does not fit an input of"),
    (array("fc.weight", np.zeros((5, 0), np.int8)), "is empty"),
    (array("stem.weight", np.zeros((4, 3, 3, 2), np.int16)), "array weight is int16"),
    (array("stem.out.shift", np.full(4, 63, I32)), "shift is 63..63, expected 0..62"),
    (array("stem.out.shift", np.full(4, -1, I32)), "shift is -1..-1"),
    (array("stem.out.multiplier", np.full(4, -1, I32)), "multipliers are not negative"),
    (array("stem.out.multiplier", np.full(3, 1, I32)), "array multiplier has shape"),
    (array("stem.out.multiplier", np.zeros(0, I32)), "array multiplier has shape"),
    (array("places.multiplier", np.ones((1, 1, 9, 9), I32)), "array multiplier has shape"),
    (array("logits.scale", np.zeros(5)), "scale .* is not a positive float32"),
    (array("logits.scale", np.array([1, 1, 1, 1, np.nan])), "scale .* is not a positive float32"),
    (array("logits.scale", np.array([1, 1, 1, 1, np.inf])), "scale .* is not a positive float32"),
    (array("logits.scale", np.array([1, 1, 1, 1, 1e-60])), "scale .* is not a positive float32"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_a_damaged_recipe_is_refused_in_one_line(
    change: Callable[[dict, dict], None], message: str, exported: Path, tmp_path: Path
) -> None:
    folder = copy_with(exported, tmp_path / "r", change)
    with pytest.raises((InputError, UnsupportedError), match=message) as found:
        read_recipe(folder)
    assert "\n" not in str(found.value)


def test_move_operators_are_checked(exported: Path, tmp_path: Path) -> None:
    document = json.loads((exported / "graph.json").read_text())
    moves = {o["op"]: o["name"] for o in document["ops"]}
    cases = [
        (moves["reshape"], "shape", [7], "does not hold the values"),
        (moves["permute_dims"], "axes", [1, 0, 2, 3], "must keep the batch first"),
        (moves["permute_dims"], "axes", [0, 1, 1, 3], "name each axis once"),
        (moves["strided_slice"], "axes", [0], "must lie in"),
        (moves["strided_slice"], "end", [1, 2, 3], "must have one length"),
        (moves["pad"], "pad_width", [0, 0, 1], "pad_width needs two values"),
        (moves["pad"], "pad_width", [1, 0, 0, 0, 0, 0, 0, 0], "0 for the batch"),
        (moves["pad"], "value", "1", "value is '1', expected a finite number"),
    ]
    for i, (name, key, value, message) in enumerate(cases):
        with pytest.raises(InputError, match=message):
            read_recipe(copy_with(exported, tmp_path / str(i), put(name, key, value)))


def test_damaged_files_are_refused(exported: Path, tmp_path: Path) -> None:
    graph, arrays = (exported / "graph.json").read_bytes(), (exported / "model.npz").read_bytes()
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **{"fc.bias": np.array([{"a": 1}], dtype=object)})
    cases: list[tuple[bytes | None, bytes | None, str]] = [
        (graph[: len(graph) // 2], arrays, "is damaged, no valid JSON"),
        (b"\xff\xfe", arrays, "is damaged, no valid JSON"),
        (b"[" * 100_000, arrays, "is damaged, no valid JSON"),
        (b"[]", arrays, "holds a list; a recipe is an object"),
        (b'{"a": 1, "a": 2}', arrays, "key 'a' stands twice"),
        (None, arrays, "graph.json cannot be read"),
        (graph, arrays[: len(arrays) // 2], "model.npz is damaged"),
        (graph, b"", "model.npz is damaged"),
        (graph, b"\x93NUMPY nonsense", "model.npz is damaged"),
        (graph, pickled.read_bytes(), "model.npz is damaged at 'fc.bias'"),
        (graph, None, "model.npz cannot be read"),
    ]
    for i, (json_bytes, npz_bytes, message) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name, content in (("graph.json", json_bytes), ("model.npz", npz_bytes)):
            if content is not None:
                (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as found:
            read_recipe(folder)
        assert "\n" not in str(found.value)


def test_flipped_bytes_never_give_anything_but_our_errors(exported: Path, tmp_path: Path) -> None:
    """A recipe with one byte changed is read, or refused with one of our errors."""
    rng = np.random.default_rng(31)
    for name in ("graph.json", "model.npz"):
        folder = copy_with(exported, tmp_path / name, lambda _d, _a: None)
        whole = bytearray((folder / name).read_bytes())
        for position in rng.integers(0, len(whole), 60):
            changed = bytearray(whole)
            changed[position] ^= int(rng.integers(1, 256))
            (folder / name).write_bytes(changed)
            try:
                read_recipe(folder)
            except Q4Error as error:
                assert "\n" not in str(error)
