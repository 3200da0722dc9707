"""Every verb on good input: its keys, its files, its exit code, and text for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tvm_q4
from tests.cli.conftest import Tool

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``x.npy``, one image, and a labelled ``data.npz`` whose labels the library gives or not."""
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "x.npy", RNG.standard_normal((3, 3, 8, 9)).astype(np.float32))
    pixels = RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "x.png")
    return folder


def test_compile_writes_the_library_and_reports_it(tool: Tool, pt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    done = tool("compile", pt2, "--batch", 2, "--json", "-o", path)
    assert (done.code, done.err) == (0, "")
    assert done.json["path"] == str(path)
    assert done.json["bytes"] == path.stat().st_size
    assert done.json["batch"] == 2
    bits = {x["name"]: (x["weight_bits"], x["activation_bits"]) for x in done.json["layers"]}
    assert sorted(bits.values()) == [(4, 8), (8, 8)]
    assert [p.name for p in tmp_path.iterdir()] == ["x.so"]
    assert tvm_q4.load(path).metadata["layers"] == done.json["layers"]


def test_compile_dumps_the_module_after_each_phase(tool: Tool, pt2: Path, tmp_path: Path) -> None:
    assert tool("compile", pt2, "--dump-ir", tmp_path / "ir", "-o", tmp_path / "x.so").code == 0
    texts = [p.read_text() for p in sorted((tmp_path / "ir").iterdir())]
    assert len(texts) > 5
    assert all("def main" in text for text in texts)


def test_integer_output_returns_accumulators(tool: Tool, pt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    assert tool("compile", pt2, "--integer-output", "-o", path).code == 0
    assert tool("verify", path, pt2).code == 0
    library = tvm_q4.load(path)
    assert library.run(np.zeros((1, 3, 8, 9), np.float32)).dtype == np.int32


@pytest.fixture(scope="module")
def float_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose last layer stays float."""
    torch = pytest.importorskip("torch")
    from tests.cli.networks import Network
    from tests.frontend.graphs import export

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "head.pt2"
    torch.export.save(export(Network(float_head=True), 1, 3, 8, 9), path)
    return path


def test_what_stays_float_is_a_warning_or_an_error(
    tool: Tool, float_head: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.so"
    line = tool("compile", float_head, "--require-integer-only", "-o", path).refused()
    assert "stay float" in line
    assert not path.exists()
    done = tool("compile", float_head, "-o", path)
    assert done.code == 0
    assert done.err.startswith("warning: ")
    assert tool("verify", path, float_head).code == 0
    report = tool("inspect", path, "--json").json
    assert {op["op"] for op in report["metadata"]["float_ops"]} >= {"relax.matmul"}
    assert all(op["reason"] for op in report["metadata"]["float_ops"])


def test_run_writes_the_result_and_the_tensors(
    tool: Tool, library: Path, images: Path, tmp_path: Path
) -> None:
    x, y, folder = images / "x.npy", tmp_path / "y.npy", tmp_path / "tensors"
    done = tool(
        "run", library, "--input", x, "--output", y, "--top", 2, "--dump-layers", folder, "--json"
    )
    assert (done.code, done.err) == (0, "")
    loaded = tvm_q4.load(library)
    expected = loaded.run(np.load(x))
    np.testing.assert_array_equal(np.load(y), expected)
    for row, logits in zip(done.json["top"], expected, strict=True):
        assert [e["class"] for e in row] == np.argsort(-logits, kind="stable")[:2].tolist()
        assert [e["name"] for e in row] == ["abcde"[e["class"]] for e in row]
    for name, tensor in loaded.trace(np.load(x)).items():
        np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), tensor)


def test_run_takes_the_quantized_input(tool: Tool, library: Path, tmp_path: Path) -> None:
    x = RNG.integers(-128, 128, (1, 3, 8, 9)).astype(np.int8)
    np.save(tmp_path / "x.npy", x)
    done = tool("run", library, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    assert done.code == 0
    same = tvm_q4.load(library).run(x.astype(np.float32) * np.float32(0.03))
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), same)


def test_run_takes_an_image_with_the_stored_transform(
    tool: Tool, library: Path, images: Path, tmp_path: Path
) -> None:
    y = tmp_path / "y.npy"
    assert tool("run", library, "--image", images / "x.png", "--output", y).code == 0
    mean = np.array([0.4914, 0.4822, 0.4465], np.float32)
    std = np.array([0.2470, 0.2435, 0.2616], np.float32)
    pixels = np.asarray(Image.open(images / "x.png")).astype(np.float32) / np.float32(255)
    x = ((pixels - mean) / std).transpose(2, 0, 1)[None]
    expected = tvm_q4.load(library).run(np.ascontiguousarray(x))
    np.testing.assert_array_equal(np.load(y), expected)


def test_run_needs_exactly_one_input(tool: Tool, library: Path, images: Path) -> None:
    assert "--input" in tool("run", library).refused()
    both = ("--input", images / "x.npy", "--image", images / "x.png")
    assert "--input" in tool("run", library, *both).refused()


def test_verify_is_bit_exact_and_says_so(
    tool: Tool, library: Path, pt2: Path, images: Path
) -> None:
    done = tool("verify", library, pt2, "--input", images / "x.npy", "--json")
    assert (done.code, done.err) == (0, "")
    report = done.json
    assert report["bit_exact"] is True
    checked = [x for x in report["layers"] if x["checked"]]
    assert checked
    assert all((x["equal"], x["max_step"]) == (1.0, 0) for x in checked)
    assert 0 <= report["top1_agreement"] <= 1


def test_verify_with_onnxruntime_shows_both_models(tool: Tool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tests.fuzz.onnx_file import write_model

    model, path = write_model(tmp_path / "m.onnx", "QDQ"), tmp_path / "m.so"
    assert tool("compile", model, "-o", path).code == 0
    done = tool("verify", path, model, "--onnxruntime")
    assert done.code == 0
    assert "equal to model" in done.out and "equal to onnxruntime" in done.out
    assert "with onnxruntime 100.00%" in done.out
    refused = tool("verify", path, tmp_path, "--onnxruntime").refused()
    assert "graph.json" in refused


def test_verify_of_another_model_is_exit_1(tool: Tool, library: Path, float_head: Path) -> None:
    done = tool("verify", library, float_head)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")


def test_verify_of_a_wrong_tensor_is_exit_1_after_the_report(
    tool: Tool, library: Path, pt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tvm_q4.load(library)
    right = found.trace

    def wrong(x: np.ndarray) -> dict[str, np.ndarray]:
        tensors = right(x)
        tensors["conv.out"] = tensors["conv.out"].copy()
        tensors["conv.out"][0, 1, 2, 3] ^= 1
        return tensors

    monkeypatch.setattr(found, "trace", wrong)
    monkeypatch.setattr("tvm_q4.verification.load", lambda path: found)
    done = tool("verify", library, pt2, "--json")
    assert done.code == 1
    assert done.json["bit_exact"] is False
    (line,) = done.err.splitlines()
    assert line.startswith("error: the library is not bit-exact: 'conv.out' at [0, 1, 2, 3]")


def test_evaluate_counts_hits(tool: Tool, library: Path, tmp_path: Path) -> None:
    x = RNG.standard_normal((7, 3, 8, 9)).astype(np.float32)
    best = tvm_q4.load(library).run(x).argmax(axis=1)
    y = np.where(np.arange(7) < 4, best, (best + 1) % 5)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    done = tool("evaluate", library, "--data", tmp_path / "data.npz", "--json")
    assert (done.code, done.err) == (0, "")
    assert (done.json["top1"], done.json["top5"], done.json["n"]) == (4 / 7, 1.0, 7)


def test_bench_reports_percentiles_and_layers(tool: Tool, library: Path) -> None:
    arguments = ("--min-ms", 0, "--repeats", 5, "--warmup", 1)
    report = tool("bench", library, *arguments, "--layers", "--json").json
    assert 0 < report["p10_ms"] <= report["median_ms"] <= report["p90_ms"] <= report["p99_ms"]
    assert {row["bits"] for row in report["layers"]} >= {"w4a8", "w8a8"}
    assert tool("bench", library, *arguments, "--json").json["layers"] == []


def test_inspect_of_a_library_is_its_metadata(tool: Tool, library: Path, tmp_path: Path) -> None:
    done = tool("inspect", library, "--extract", tmp_path / "parts", "--json")
    stored = json.loads((tmp_path / "parts" / "metadata.json").read_text())
    assert done.json["metadata"] == stored == tvm_q4.load(library).metadata


def test_inspect_of_a_model_agrees_with_its_library(tool: Tool, library: Path, pt2: Path) -> None:
    model, compiled = (tool("inspect", p, "--json").json for p in (pt2, library))
    assert (model["kind"], compiled["kind"]) == ("model", "library")
    shared = (
        "name",
        "op",
        "weight_bits",
        "activation_bits",
        "activation",
        "params",
        "macs",
        "bops",
    )
    for key in (*shared, "in_shape", "out_shape"):
        assert [x[key] for x in model["metadata"]["layers"]] == [
            x[key] for x in compiled["metadata"]["layers"]
        ], key
    layer = model["metadata"]["layers"][0]
    assert (layer["params"], layer["macs"], layer["bops"]) == (216, 216 * 72, 216 * 72 * 4 * 8)
    assert layer["weight_bytes"] == 108
    assert model["metadata"]["model"]["sha256"] == compiled["metadata"]["model"]["sha256"]


def test_inspect_writes_a_recipe_that_compiles_to_the_same(
    tool: Tool, library: Path, pt2: Path, images: Path, tmp_path: Path
) -> None:
    recipe, path = tmp_path / "recipe", tmp_path / "x.so"
    assert tool("inspect", pt2, "--recipe", recipe).code == 0
    assert tool("compile", recipe, "-o", path).code == 0
    assert tool("verify", path, recipe).code == 0
    x = np.load(images / "x.npy")
    np.testing.assert_array_equal(tvm_q4.load(path).run(x), tvm_q4.load(library).run(x))


def test_inspect_refuses_options_of_the_other_kind(
    tool: Tool, library: Path, pt2: Path, tmp_path: Path
) -> None:
    assert "--recipe takes a model" in tool("inspect", library, "--recipe", tmp_path).refused()
    assert "--extract takes a library" in tool("inspect", pt2, "--extract", tmp_path).refused()


@pytest.mark.parametrize("verb", ["run", "verify", "evaluate", "bench", "inspect"])
def test_text_for_people_names_what_counts(
    tool: Tool, library: Path, pt2: Path, images: Path, tmp_path: Path, verb: str
) -> None:
    np.savez(tmp_path / "d.npz", x=np.load(images / "x.npy"), y=np.zeros(3, np.int64))
    arguments = {
        "run": ("--input", images / "x.npy"),
        "verify": (pt2,),
        "evaluate": ("--data", tmp_path / "d.npz"),
        "bench": ("--min-ms", 0, "--repeats", 2, "--layers"),
        "inspect": (),
    }
    said = {
        "run": "image 2: ",
        "verify": "bit-exact: ",
        "evaluate": "of 3 images",
        "bench": "median ",
        "inspect": "integer only",
    }
    done = tool(verb, library, *arguments[verb])
    assert (done.code, done.err) == (0, "")
    assert said[verb] in done.out


def test_the_module_runs_as_a_program(library: Path) -> None:
    command = [sys.executable, "-m", "tvm_q4", "inspect", str(library), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kind"] == "library"
    assert done.stderr == ""
