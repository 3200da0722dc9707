"""``tvm-q4 quantize``: both ways on a tiny network, and every way to use it wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Tool

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tests.quantize.training.tiny import SHAPE, network  # noqa: E402
from tvm_q4.quantize import load_program, save_program  # noqa: E402

FACTS = {"name": "tiny", "transform": "cifar10", "classes": ["a", "b", "c", "d"]}


def _save(path: Path, batch: int | None) -> Path:
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    example = (torch.zeros(batch or 2, *SHAPE),)
    program = torch.export.export(network().eval(), example, dynamic_shapes=shapes)
    save_program(program, path, FACTS)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``float.pt2``, ``fixed.pt2`` for batches of 4, ``images.npz`` and other data."""
    folder = tmp_path_factory.mktemp("models")
    _save(folder / "float.pt2", None)
    _save(folder / "fixed.pt2", 4)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)
    y = rng.integers(0, 4, 24)
    np.savez(folder / "images.npz", x=x, y=y)
    np.savez(folder / "unlabelled.npz", x=x)
    np.savez(folder / "wide.npz", x=np.zeros((24, 6, 9, 3), np.uint8), y=y)
    np.savez(folder / "floats.npz", x=np.zeros((24, 3, 7, 7), np.float32), y=y)
    np.savez(folder / "labels.npz", x=x, y=y + 1)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for outputs."""
    return tmp_path


def _run(tool: Tool, folder: Path, out: Path, *args: object, model: object = None, **options):
    given = {
        "config": "uniform4",
        "calibrate": folder / "images.npz",
        "samples": 16,
        "batch-size": 8,
        "output": out / "q.pt2",
        **{name.replace("_", "-"): value for name, value in options.items()},
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    return tool("quantize", model or folder / "float.pt2", *flags, *args)


def _train(tool: Tool, folder: Path, out: Path, *args: object, **options):
    options = {"train": folder / "images.npz", "epochs": 1, **options}
    return _run(tool, folder, out, *args, **options)


def test_post_training(tool: Tool, folder: Path, out: Path) -> None:
    done = _run(tool, folder, out, "--json")
    assert (done.code, done.err) == (0, "")
    report = done.json
    assert [p.name for p in out.iterdir()] == ["q.pt2"]
    assert report["path"] == str(out / "q.pt2") and report["method"] == "post-training"
    assert report["calibration"] == {"n": 16}
    assert report["training"] is None and report["seconds"] > 0 and report["float_ops"] == []
    pairs = [(x["weight_bits"], x["activation_bits"]) for x in report["layers"]]
    assert pairs == [(8, 8), (4, 4), (8, 8)]
    assert list(report["bits"].values())[1] == {"weight": 4, "activation": 4}
    assert load_program(out / "q.pt2")[1] == FACTS


def test_the_file_compiles_with_the_models_transform(tool: Tool, folder: Path, out: Path) -> None:
    assert _run(tool, folder, out).code == 0
    lib = out / "q.so"
    assert tool("compile", out / "q.pt2", "--require-integer-only", "-o", lib).code == 0
    done = tool("evaluate", lib, "--data", folder / "images.npz", "--json")
    assert done.json["n"] == 24


def test_training(tool: Tool, folder: Path, out: Path) -> None:
    work = out / "work"
    done = _train(
        tool, folder, out, "--distill", 0.5, "--method", "fake-quantize", workdir=work, epochs=2
    )
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split() == ["layer", "kind", "bits", "params"]
    assert [line.split()[2] for line in lines[1:4]] == ["W8A8", "W4A4", "W8A8"]
    assert lines[4].startswith("epoch 1: loss ") and lines[5].startswith("epoch 2: loss ")
    assert "fake-quantize, 16 calibration images" in lines[6]
    assert sorted(p.name for p in out.iterdir()) == ["q.pt2", "work"]
    assert [p.name for p in work.iterdir()] == ["checkpoint.pt"]


def test_training_goes_on_or_refuses(tool: Tool, folder: Path, out: Path) -> None:
    work = out / "work"
    first = _train(tool, folder, out, "--json", workdir=work)
    assert (first.code, first.err) == (0, "")
    again = _train(tool, folder, out, "--json", workdir=work)
    assert again.json["training"] == first.json["training"]
    line = _train(tool, folder, out, "--distill", 0.5, workdir=work).refused()
    assert "was made with distill 0.0, this run has 0.5" in line


def test_the_checkpoint_beside_the_output_goes_when_that_is_written(
    tool: Tool, folder: Path, out: Path
) -> None:
    assert _train(tool, folder, out).code == 0
    assert [p.name for p in out.iterdir()] == ["q.pt2"]


def test_fixed_batches(tool: Tool, folder: Path, out: Path) -> None:
    done = _run(tool, folder, out, "--json", model=folder / "fixed.pt2", samples=18)
    assert done.json["calibration"] == {"n": 16}
    line = _run(tool, folder, out, model=folder / "fixed.pt2", samples=3).refused()
    assert "samples is 3, but the model takes batches of 4 only" in line


@pytest.mark.slow
def test_a_zoo_model(tool: Tool, tmp_path: Path) -> None:
    x = np.zeros((4, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    path = tmp_path / "q.pt2"
    done = tool(
        "quantize", "zoo:resnet20-cifar", "--config", "w4a8", "--calibrate", tmp_path / "x.npz",
        "--samples", 4, "-o", path, "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert load_program(path)[1] == {"name": "resnet20-cifar", "transform": "cifar10"}


BAD = {
    "a missing model": ({"model": "missing.pt2"}, "'missing.pt2' does not exist"),
    "onnx": ({"model": "{folder}/images.npz"}, "is not a .pt2 file; quantize takes a float"),
    "a zoo model with bits": ({"model": "zoo:resnet18@uniform8"}, "is quantized already"),
    "an unknown zoo model": ({"model": "zoo:resnet19"}, "zoo model 'resnet19' does not exist"),
    "an unknown config": ({"config": "uniform5"}, "'uniform5' is neither a preset"),
    "an unknown layer": ({"config": "{folder}/bits.json"}, "names layer 'stem'"),
    "missing data": ({"calibrate": "none.npz"}, "'none.npz' does not exist"),
    "images of another size": ({"calibrate": "{folder}/wide.npz"}, "wide.npz"),
    "inputs of another size": ({"calibrate": "{folder}/floats.npz"}, "x float32 [24, 3, 7, 7]"),
    "too few images": ({"samples": 25}, "has 24 images, samples is 25"),
    "another suffix": ({"output": "{out}/q.onnx"}, "must end in .pt2"),
    "a folder that is not there": ({"output": "{out}/no/q.pt2"}, "no' does not exist; make it"),
    "training options": ({"epochs": 3}, "--epochs is for training; give --train DATA"),
    "a training method": ({"method": "lsq"}, "--method is for training; give --train DATA"),
    "no labels": ({"train": "{folder}/unlabelled.npz"}, "no labels"),
    "labels beyond": ({"train": "{folder}/labels.npz"}, "label 4 of the training data"),
    "too large a batch": ({"train": "{folder}/images.npz", "batch_size": 25}, "fewer than one"),
    "both ways": ({"train": "{folder}/images.npz", "rounding": "adaround"}, "rounding: for post"),
    "no such device": ({"train": "{folder}/images.npz", "device": "tpu"}, "device is 'tpu'"),
    "a rate of 0": ({"train": "{folder}/images.npz", "learning_rate": 0}, "learning_rate is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(tool: Tool, folder: Path, out: Path, case: str) -> None:
    layer = {"stem": {"weight": 4, "activation": 4}}
    config = {"format": "tvm-q4/bit-config", "version": 1, "layers": layer}
    (folder / "bits.json").write_text(json.dumps(config))
    options, said = BAD[case]
    options = {k: str(v).format(folder=folder, out=out) for k, v in options.items()}
    assert said in _run(tool, folder, out, **options).refused()
    assert list(out.iterdir()) == []


def test_a_model_that_is_quantized_already(tool: Tool, pt2: Path, folder: Path, out: Path) -> None:
    assert "is quantized already" in _run(tool, folder, out, model=pt2).refused()
