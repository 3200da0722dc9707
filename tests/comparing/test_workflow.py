"""``compare`` from configs to files: what is in the report, going on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_q4
from tvm_q4.comparing import workflow
from tvm_q4.errors import EnvironmentMismatch, InputError

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib", reason="plots need matplotlib: install tvm-q4[compare]")

QUICK: dict[str, Any] = {"rounds": 2, "seconds": 0.0, "progress": False}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small quantized models of the same layers and other weights."""
    from tests.cli.networks import Network
    from tests.frontend.graphs import export
    from tvm_q4.quantize import save_program

    folder, paths = tmp_path_factory.mktemp("models"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(folder / f"m{seed}.pt2")
        save_program(export(Network(), 1, 3, 8, 9), paths[-1], {"name": "m", "transform": None})
    return paths


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.normal(0, 1, (20, 3, 8, 9)).astype(np.float32), y=rng.integers(0, 5, 20))
    return path


@pytest.fixture(scope="module")
def report(
    models: list[Path], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("report")
    configs = [str(models[0]), f"other={models[1]}"]
    return tvm_q4.compare(models[0], configs=configs, data=data, output=output, **QUICK)


def test_the_report_is_what_the_file_holds(report: dict[str, Any]) -> None:
    path = Path(report["report"])
    assert json.loads(path.read_text()) == report
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json", "work"]
    assert Path(report["page"]).read_text().count("<svg") >= 4


def test_a_row_agrees_with_the_verbs(report: dict[str, Any], data: Path) -> None:
    row = report["configs"][1]
    library = Path(report["report"]).parent / row["library"]
    assert (row["name"], row["kind"], row["bit_exact"]) == ("other", "model", True)
    found = tvm_q4.evaluate(library, data)
    assert {k: row["accuracy"][k] for k in ("top1", "n", "correct")} == {
        k: found[k] for k in ("top1", "n", "correct")
    }
    totals = tvm_q4.inspect(library)["totals"]
    assert {k: row[k] for k in totals if k != "layers"} == {
        k: v for k, v in totals.items() if k != "layers"
    }
    assert row["library_bytes"] == library.stat().st_size
    assert row["latency"]["n"] >= 10 and len(row["latency"]["rounds_ms"]) == 2


def test_the_report_says_what_it_is_of(report: dict[str, Any], data: Path) -> None:
    assert report["ok"] is True
    assert (report["target"], report["batch"], report["baseline"]) == ("llvm", 1, "m0")
    assert {"tvm-q4", "apache-tvm", "matplotlib"} <= set(report["versions"])
    assert f"--data {data}" in report["command"]
    assert "--config other=" in report["command"]
    names = [layer["name"] for layer in report["layers"]]
    assert len(names) == 2
    assert all(set(layer["bits"]) == {"m0", "other"} for layer in report["layers"])


def test_the_same_call_goes_on_from_what_was_made(
    models: list[Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"configs": [models[1]], "data": data, "output": tmp_path, **QUICK}

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tvm_q4.compare(models[0], **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["work"]
    made = sorted(p.name for p in (tmp_path / "work").iterdir())
    with monkeypatch.context() as patch:
        for verb in ("compile", "verify", "evaluate"):
            patch.setattr(tvm_q4, verb, interrupt)
        tvm_q4.compare(models[0], **arguments)
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == made


def test_a_library_that_is_not_exact_is_reported(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"bit_exact": False, "n": 2, "first_mismatch": {"name": "conv"}}
    monkeypatch.setattr(tvm_q4, "verify", lambda *_, **__: wrong)
    report = tvm_q4.compare(models[0], configs=[models[0]], output=tmp_path, **QUICK)
    assert report["ok"] is False
    assert report["configs"][0]["notes"] == ["NOT bit-exact with the reference, first at 'conv'"]
    assert "Do not use these numbers" in (tmp_path / "report.html").read_text()


def test_tables_are_shown_by_layer(
    models: list[Path], report: dict[str, Any], tmp_path: Path
) -> None:
    names = [layer["name"] for layer in report["layers"]]
    rows = [{"name": n, "latency_ms": {"4": 0.5}, "sensitivity": {"4": 0.25}} for n in names]
    table = {"format": "tvm-q4/layer-table", "version": 1, "layers": rows}
    (tmp_path / "t.json").write_text(json.dumps(table))
    found = tvm_q4.compare(
        models[0], configs=[models[0]], table=[tmp_path / "t.json"], output=tmp_path / "o", **QUICK
    )
    for layer in found["layers"]:
        assert (layer["latency_ms"], layer["sensitivity"]) == ({"4": 0.5}, {"4": 0.25})
        assert layer["source"] == {"4": "layer table"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configs": ["uniform8"]}, "config 'uniform8' is to be quantized; give images"),
        ({"configs": ["nonsense"]}, "neither float, a preset"),
        ({"configs": []}, "no config"),
        ({"rounds": 0}, "rounds 0"),
        ({"model": "missing.pt2"}, "model 'missing.pt2' does not exist"),
        ({"target": "nonsense"}, "nonsense"),
        ({"data": "missing.npz"}, "config 'm0': data 'missing.npz' does not exist"),
        ({"table": ["missing.json"]}, "'missing.json' cannot be read"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_arguments(
    models: list[Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"model": models[0], "configs": [models[0]]} | QUICK | changes
    with pytest.raises(InputError.__mro__[1], match=message):
        tvm_q4.compare(output=tmp_path / "out", **arguments)
    assert not list(tmp_path.rglob("report*"))


def test_the_output_must_not_be_a_file(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"):
        tvm_q4.compare(models[0], configs=[models[0]], output=tmp_path / "out", **QUICK)


def test_matplotlib_is_asked_for_first(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentMismatch, match=r"pip install 'tvm-q4\[compare\]'"):
        tvm_q4.compare(models[0], configs=[models[0]], output=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_float_presets_and_bit_configs_with_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (16, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=rng.integers(0, 10, 16))
    bits = {"format": "tvm-q4/bit-config", "version": 1, "layers": {}}
    bits["layers"] = {"layer1.0.conv1": {"weight": 4, "activation": 4}}
    (tmp_path / "plan.json").write_text(json.dumps(bits))
    report = tvm_q4.compare(
        "zoo:resnet20-cifar",
        configs=["float", "uniform8", tmp_path / "plan.json"],
        calibrate=tmp_path / "d.npz",
        samples=16,
        data=tmp_path / "d.npz",
        output=tmp_path / "out",
        **QUICK,
    )
    rows = {row["name"]: row for row in report["configs"]}
    assert rows["float"]["latency"] is None
    assert all(row["accuracy"]["n"] == 16 for row in rows.values())
    assert rows["plan"]["bits"] == {"8": 21, "4": 1}
    assert rows["float"]["bops"] == 16 * rows["uniform8"]["bops"]
    layer = next(row for row in report["layers"] if row["name"] == "layer1.0.conv1")
    assert layer["bits"] == {"uniform8": "8", "plan": "4"}
    assert layer["source"] == {"8": "measured in uniform8"}


@pytest.mark.slow
def test_a_target_that_is_not_here_is_predicted(tmp_path: Path) -> None:
    from tvm_q4.library.nvcc import find_tool

    if find_tool("nvcc") is None:
        pytest.skip("no nvcc: install tvm-q4[cuda]")
    if tvm_q4.doctor()["gpus"]:
        pytest.skip("this machine has a GPU")
    report = tvm_q4.compare(
        "zoo:resnet20-cifar",
        configs=["uniform8", "uniform4"],
        target="nvidia/nvidia-t4",
        image_size=(8, 8),
        output=tmp_path,
        **QUICK,
    )
    for row in report["configs"]:
        assert row["bit_exact"] is None
        assert (row["latency"]["source"], row["latency"]["device"]) == ("predicted", "sm_75")
        assert any(note.startswith("not verified: ") for note in row["notes"])
        assert str(tmp_path) not in "".join(row["notes"])
    assert "predicted for sm_75, not measured" in (tmp_path / "report.html").read_text()
