"""``tvm-q4 sensitivity``: its tables, going on where it stopped, and ways to use it wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Tool

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tests.quantize.training.tiny import SHAPE, network  # noqa: E402
from tvm_q4.layer_table import read_table  # noqa: E402
from tvm_q4.quantize import load_bit_config, save_program  # noqa: E402
from tvm_q4.sensitivities import fisher, hessian, workflow  # noqa: E402

NAMES = ["0", "3", "9"]
FACTS = {"name": "tiny", "transform": "cifar10"}


def _save(path: Path, batch: int | None) -> None:
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    example = (torch.zeros(batch or 2, *SHAPE),)
    program = torch.export.export(network().eval(), example, dynamic_shapes=shapes)
    save_program(program, path, FACTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models ``float.pt2`` and, for batches of 4, ``fixed.pt2``; data."""
    folder = tmp_path_factory.mktemp("models")
    _save(folder / "float.pt2", None)
    _save(folder / "fixed.pt2", 4)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)
    y = rng.integers(0, 4, 24)
    np.savez(folder / "images.npz", x=x, y=y)
    np.savez(folder / "unlabelled.npz", x=x)
    np.savez(folder / "floats.npz", x=np.zeros((24, 3, 7, 7), np.float32), y=y)
    np.savez(folder / "labels.npz", x=x, y=y + 1)
    np.savez(folder / "nan.npz", x=np.full((24, *SHAPE), np.nan, np.float32), y=y)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for outputs."""
    return tmp_path


def _run(tool: Tool, folder: Path, out: Path, *args: object, model: object = None, **options):
    given = {
        "data": folder / "images.npz",
        "images": 16,
        "batch-size": 8,
        "probes": 3,
        "output": out / "s.json",
        **{name.replace("_", "-"): value for name, value in options.items()},
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    return tool("sensitivity", model or folder / "float.pt2", *flags, *args)


def _table(tool: Tool, folder: Path, out: Path, *args: object, **options):
    done = _run(tool, folder, out, "--json", *args, **options)
    assert done.code == 0, done
    assert [p.name for p in out.iterdir()] == ["s.json"]
    assert json.loads((out / "s.json").read_text()) == done.json
    return done.json


@pytest.mark.parametrize("metric", ["hessian", "fisher", "output-mse"])
@pytest.mark.parametrize("activations", [False, True])
def test_the_table(tool: Tool, folder: Path, out: Path, metric: str, activations: bool) -> None:
    flags = ["--activations"] if activations else []
    table = _table(tool, folder, out, *flags, metric=metric)
    assert (table["format"], table["version"]) == ("tvm-q4/layer-table", 1)
    assert (table["network"], table["metric"], table["tied"]) == ("tiny", metric, [])
    first, middle, last = table["layers"]
    assert [row["name"] for row in table["layers"]] == NAMES
    assert [row["params"] for row in table["layers"]] == [216, 576, 32]
    assert [row["macs"] for row in table["layers"]] == [216 * 36, 576 * 36, 32]
    assert first["fixed"] == last["fixed"] == 8 and "fixed" not in middle
    assert list(first["sensitivity"]) == list(first["standard_error"]) == ["8"]
    values = middle["sensitivity"]
    assert sorted(values) == sorted(middle["standard_error"]) == ["4", "8", "w4a8"]
    if activations:
        assert values["4"] > values["w4a8"] > values["8"] > 0
        assert table["activations"] == {"spearman": None, "moved": []}
    else:
        assert values["4"] == values["w4a8"] > values["8"] > 0
        assert "activations" not in table
    details = table["details"]
    assert (details["images"], details["seed"]) == (16, 0)
    assert details.get("probes") == (3 if metric == "hessian" else None)
    assert read_table(out / "s.json").to_dict() == table


def test_text_for_people(tool: Tool, folder: Path, out: Path) -> None:
    done = _run(tool, folder, out, "--activations", estimator="hessian-vector")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["layer", *NAMES]
    assert "stays at 8" in lines[1] and "stays at 8" in lines[3]
    assert lines[4].startswith("order with and without activations: ")
    assert "hessian, 16 images, 3 probes, NOT within tolerance 0.1; written to" in lines[5]


def test_names_are_those_of_bit_configs_and_latencies(tool: Tool, folder: Path, out: Path) -> None:
    table = _table(tool, folder, out)
    names = [row["name"] for row in table["layers"]]
    layers = {names[1]: {"weight": 4, "activation": 4}}
    bits = {"format": "tvm-q4/bit-config", "version": 1, "layers": layers}
    assert list(load_bit_config(bits).resolve(names)) == names
    done = tool("latency", folder / "float.pt2", "--json")
    assert [row["name"] for row in done.json["layers"]] == names
    assert [(r["params"], r["macs"]) for r in table["layers"]] == [
        (r["params"], r["macs"]) for r in done.json["layers"]
    ]


def test_seeds_and_labels_count(tool: Tool, folder: Path, out: Path) -> None:
    first, other = (
        _table(tool, folder, out, "--seed", seed)["layers"][1]["sensitivity"] for seed in (0, 1)
    )
    assert first != other
    by_data, by_model = (
        _table(tool, folder, out, metric="fisher", labels=labels)["layers"][1]["sensitivity"]
        for labels in ("data", "model")
    )
    assert by_data != by_model


def test_a_fixed_batch_and_data_without_labels(tool: Tool, folder: Path, out: Path) -> None:
    fixed, data = folder / "fixed.pt2", folder / "unlabelled.npz"
    table = _table(tool, folder, out, model=fixed, data=data, images=18)
    assert (table["details"]["images"], table["details"]["batch_size"]) == (16, 4)
    assert "labels" not in table["details"]
    table = _table(tool, folder, out, model=fixed, data=data, metric="fisher", labels="model")
    assert table["details"]["labels"] == "model"


@pytest.mark.parametrize("metric", ["hessian", "fisher"])
def test_an_interrupted_run_goes_on_and_ends_where_another_does(
    tool: Tool, folder: Path, out: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _table(tool, folder, out, "--activations", metric=metric)
    (out / "s.json").unlink()
    kind = {"hessian": hessian.HessianMetric, "fisher": fisher.FisherMetric}[metric]
    measure, calls = kind.measure, []

    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(self, *args)

    monkeypatch.setattr(kind, "measure", stopped)
    assert _run(tool, folder, out, "--activations", metric=metric).code == 130
    assert [p.name for p in out.iterdir()] == ["s.checkpoint.pt"]
    line = _run(tool, folder, out, "--activations", metric=metric, images=15).refused()
    assert "was made with data" in line or "was made with images 16, this run has 15" in line
    assert _table(tool, folder, out, "--activations", metric=metric) == wanted
    assert len(calls) == (7 if metric == "hessian" else 3)


def test_the_workdir_keeps_the_checkpoint(tool: Tool, folder: Path, out: Path) -> None:
    first = _run(tool, folder, out, workdir=out / "work")
    assert first.code == 0
    assert sorted(p.name for p in out.iterdir()) == ["s.json", "work"]
    assert [p.name for p in (out / "work").iterdir()] == ["checkpoint.pt"]
    assert _run(tool, folder, out, workdir=out / "work").out == first.out


def test_negative_traces_are_reported_and_count_as_0(
    tool: Tool, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def negative(net, x, y, generator, activations):
        return torch.full((len(net.layers), 1), -2.0, dtype=torch.float64)

    monkeypatch.setitem(hessian.ESTIMATORS, "gauss-newton", negative)
    done = _run(tool, folder, out, "--json")
    assert done.code == 0 and "layer '3': the trace for its weight is estimated as neg" in done.err
    row = done.json["layers"][1]
    assert row["sensitivity"] == {"4": 0.0, "8": 0.0, "w4a8": 0.0}
    assert row["hessian"]["weight"]["mean_trace"] == -2.0 / 576


BAD = {
    "a model that is not there": ({"model": "none.pt2"}, "'none.pt2' does not exist"),
    "missing data": ({"data": "none.npz"}, "'none.npz' does not exist"),
    "inputs of another size": ({"data": "{folder}/floats.npz"}, "x float32 [24, 3, 7, 7]"),
    "too few images": ({"images": 25}, "has 24 images, images is 25"),
    "one image": ({"images": 1}, "images is 1; a standard error needs at least 2"),
    "one probe": ({"probes": 1}, "probes is 1; a standard error needs at least 2"),
    "a tolerance of 1": ({"tolerance": 1}, "tolerance is 1.0; it is a share"),
    "no labels, fisher": (
        {"data": "{folder}/unlabelled.npz", "metric": "fisher"},
        "has no labels, which fisher needs",
    ),
    "no labels, hessian": (
        {"data": "{folder}/unlabelled.npz", "estimator": "hessian-vector"},
        "has no labels, which hessian needs",
    ),
    "labels beyond": ({"data": "{folder}/labels.npz", "metric": "fisher"}, "label 4 of data"),
    "no numbers": ({"data": "{folder}/nan.npz"}, "batch 1 of 2 gives a sensitivity that is no"),
    "another suffix": ({"output": "{out}/s.txt"}, "must end in .json"),
    "a folder that is not there": ({"output": "{out}/no/s.json"}, "no' does not exist; make it"),
    "an unknown metric": ({"metric": "hawq"}, "'hawq' is not one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(tool: Tool, folder: Path, out: Path, case: str) -> None:
    options, said = BAD[case]
    options = {k: str(v).format(folder=folder, out=out) for k, v in options.items()}
    assert said in _run(tool, folder, out, **options).refused()
    assert list(out.iterdir()) == []


def test_a_model_that_is_quantized_already(tool: Tool, pt2: Path, folder: Path, out: Path) -> None:
    assert "is quantized already" in _run(tool, folder, out, model=pt2).refused()


def test_python_checks_names_too(folder: Path) -> None:
    from tvm_q4 import InputError, sensitivity

    for wrong in ({"metric": "x"}, {"labels": "x"}, {"estimator": "x"}):
        with pytest.raises(InputError, match="is 'x'; use one of"):
            sensitivity(folder / "float.pt2", folder / "images.npz", **wrong)
    assert workflow.METRICS == ("hessian", "output-mse", "fisher")
