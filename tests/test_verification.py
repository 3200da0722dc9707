"""``verify`` on compiled networks: it accepts what is right, and finds one wrong weight."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import small_network
from tvm_q4.compiler import Options, compile_module
from tvm_q4.errors import CheckFailed, InputError
from tvm_q4.frontend.recipe import write_recipe
from tvm_q4.library import Library, export_library, load
from tvm_q4.model_hash import model_hash
from tvm_q4.relay_passes.pipeline import to_integer
from tvm_q4.sample_input import sample_input
from tvm_q4.targets import parse_target
from tvm_q4.verification import float_boundaries, verify

NAMES = ["input", "conv1", "conv1.out", "conv2", "add", "pool.out", "fc", "fc.dq"]


def _compile(mod, path: Path, options: Options | None = None, **changes) -> Library:
    compiled = compile_module(mod, parse_target("llvm"), options or Options())
    return load(export_library(compiled.executable, compiled.metadata | changes, path))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return _compile(small_network.quantized(), tmp_path_factory.mktemp("verify") / "a.so")


def _rows(report: dict) -> dict[str, dict]:
    return {row["name"]: row for row in report["layers"]}


def test_right_library(library):
    report = verify(library, small_network.quantized())
    assert report["bit_exact"] is True and report["first_mismatch"] is None
    assert report["n"] == 2 and report["output"] == {"equal": 1.0, "max_step": 0}
    rows = _rows(report)
    # The mean's name is a variable's; every other name comes from the model.
    assert [name for name in rows if not name.startswith("lv")] == NAMES
    for name in ("input", "conv1.out", "add", "pool.out"):
        row = rows[name]
        assert (row["kind"], row["checked"], row["equal"], row["max_step"]) == (
            "exact",
            True,
            1.0,
            0,
        )
        assert row["framework_max_step"] <= 1 and row["framework_equal"] > 0.5
    assert rows["conv1"]["checked"] is False and rows["conv1"]["equal"] is None
    assert report["top1_against"] == "model" and report["top1_agreement"] == 1.0
    json.dumps(report)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_any_number_of_images_and_integers(library, count, dtype):
    x = sample_input(library.metadata, count, dtype=dtype, seed=count)
    report = verify(library, small_network.quantized(), x)
    assert report["bit_exact"] and report["n"] == count
    assert _rows(report)["conv1.out"]["equal"] == 1.0
    assert ("input" in _rows(report)) == (dtype == "float32")


def test_integer_module_has_no_framework(library):
    report = verify(library, to_integer(small_network.quantized()))
    assert report["bit_exact"] and report["top1_against"] == "reference"
    assert all("framework_equal" not in row for row in report["layers"])


@pytest.mark.parametrize("first", [False, True])
def test_one_wrong_weight(tmp_path, first):
    """A library of one network that claims to be another, which differs in one weight."""
    claimed = small_network.quantized(flip=True)
    sha256 = model_hash(to_integer(claimed))
    model = {"name": "liar", "sha256": sha256}
    library = _compile(small_network.quantized(), tmp_path / "a.so", model=model)
    report = verify(library, claimed, first_mismatch=first)
    assert report["bit_exact"] is False
    rows = _rows(report)
    assert rows["input"]["equal"] == 1.0
    assert rows["conv1.out"]["equal"] < 1 and rows["conv1.out"]["max_step"] >= 1
    mismatch = report["first_mismatch"]
    assert mismatch["name"] == "conv1.out" and mismatch["index"][1] == 5
    assert mismatch["expected"] != mismatch["found"]
    assert mismatch["different"] == mismatch["elements"] - round(
        rows["conv1.out"]["equal"] * mismatch["elements"]
    )
    assert ("add" in rows) == (not first)


def test_another_model(library):
    with pytest.raises(CheckFailed, match="is another model") as caught:
        verify(library, small_network.quantized(seed=1))
    assert "\n" not in str(caught.value)


def test_another_shape(library):
    with pytest.raises(InputError, match=r"\[1, 3, 9, 7\].*\[2, 3, 9, 7\]"):
        verify(library, small_network.quantized(shape=(1, 3, 9, 7)))


def test_bad_input(library):
    with pytest.raises(InputError, match="expected float32 or int8"):
        verify(library, small_network.quantized(), np.zeros((2, 3, 9, 8), np.float32))


def test_float_stem(tmp_path):
    mod = small_network.float_stem()
    library = _compile(mod, tmp_path / "a.so")
    assert library.metadata["float_ops"]
    report = verify(library, mod)
    rows = _rows(report)
    assert report["bit_exact"] is True
    assert float_boundaries(to_integer(mod)) == ["conv1.out"]
    assert rows["conv1.out"]["kind"] == "float boundary" and rows["conv1.out"]["equal"] > 0.999
    assert rows["add"]["kind"] == "exact" and rows["add"]["equal"] == 1.0


def test_a_boundary_that_differs_is_passed_on(tmp_path, monkeypatch):
    """The reference continues from the library's integers behind a float island."""
    mod = small_network.float_stem()
    library = _compile(mod, tmp_path / "a.so")
    x = sample_input(library.metadata, 2, dtype="float32")
    other = library.trace(x[::-1])
    monkeypatch.setattr(library, "trace", lambda _: dict(other))
    report = verify(library, mod, x)
    rows = _rows(report)
    assert rows["conv1.out"]["equal"] < 0.9 and rows["conv1.out"]["max_step"] > 1
    assert rows["add"]["equal"] == 1.0 and report["bit_exact"] is True


def test_integer_output(tmp_path):
    library = _compile(small_network.quantized(), tmp_path / "a.so", Options(integer_output=True))
    report = verify(library, small_network.quantized())
    assert report["bit_exact"] and library.metadata["output"]["dtype"] == "int32"
    assert report["top1_agreement"] == 1.0
    x = sample_input(library.metadata, 2, dtype="float32", seed=5)
    floats = _compile(small_network.quantized(), tmp_path / "b.so").run(x)
    assert np.array_equal(library.logits(library.run(x)), floats)


def test_recipe(tmp_path):
    from tvm_q4.frontend import load_model

    folder = tmp_path / "recipe"
    write_recipe(to_integer(small_network.quantized()), folder)
    library = _compile(load_model(folder, batch=3), tmp_path / "a.so")
    assert library.input.batch == 3
    assert verify(library.path, folder)["bit_exact"]
