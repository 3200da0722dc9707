"""The script that tunes the shipped logs: its cases, its shares of the time, its report."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
WHOLE = {"predicted_ms": 2.0, "tuned_ms": 1.0, "ratio": {"median": 0.5, "low": 0.4, "high": 0.6}}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("tune_shipped")


def test_models_are_the_shipped_ones_and_the_zoos(script: ModuleType) -> None:
    for config in ("uniform8", "uniform4"):
        assert Path(script.model_of("resnet20", config)).is_file()
        assert script.model_of("resnet50", config) == f"zoo:resnet50@{config}"


def test_every_case_gets_its_share_and_is_reported(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    asked: list[tuple[str, int, float]] = []

    def tune(model: str, batch: int, log: Path, minutes: float, options: Any) -> dict[str, Any]:
        asked.append((model, batch, minutes))
        none = "resnet18" in model and batch == 8
        times = {"start_us": None if none else 200.0, "best_us": None if none else 150.0}
        return {"measured": 3, "log": str(log), **times}

    monkeypatch.setattr(script, "tune", tune)
    monkeypatch.setattr(script, "gain", lambda *_: WHOLE)
    report = tmp_path / "report.json"
    arguments = ["--minutes", "15", "--networks", "resnet20,resnet18", "--configs", "uniform8"]
    arguments += ["--log", str(tmp_path / "cpu.jsonl"), "--report", str(report)]
    assert script.main(arguments) == 0
    assert [batch for _, batch, _ in asked] == [1, 8, 1, 8]
    # Shares of 1, 1, 4 and 4; what a case leaves goes to those after it.
    assert [minutes for *_, minutes in asked] == pytest.approx([1.5, 15 / 9, 7.5, 15], rel=0.01)
    cases = json.loads(report.read_text())["cases"]
    assert len(cases) == 4 and {case["log"] for case in cases} == {"cpu.jsonl"}
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| resnet")]
    assert rows[0] == (
        "| resnet20 | uniform8 | 1 | 200 | 150 | 0.750 | 2.000 | 1.000 | 0.500 (0.400..0.600) |"
    )
    assert rows[3].startswith("| resnet18 | uniform8 | 8 | - | - | - |")
