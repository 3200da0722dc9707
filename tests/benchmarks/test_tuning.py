"""The tuning benchmark: its numbers, its table, what it measures, MetaSchedule's counterpart."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tvm

from tests.tune import fakes
from tvm_q4.targets import cpu_target
from tvm_q4.tune.candidates import Candidates
from tvm_q4.tune.task import Task

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def row(**more: Any) -> dict[str, Any]:
    """A layer of four settings: the third is best, the last failed; our search tried two."""
    return {
        "settings": 4,
        "macs": 1000,
        "ours": {"curve": [[1.0, 1, 1.0], [2.0, 2, 0.52]], "seconds": 3.0, "start": 1, "best": 2},
        "space": {
            "order": [0, 3, 1, 2],
            "relative": {"1": 1.0, "2": 0.5, "0": 2.0, "3": None},
            "settings": 4,
            "seconds_per_trial": 0.5,
        },
        "metaschedule": {"curve": [[9.0, None], [9.0, 1.5]], "seconds": 9.5, "failures": ["x"]},
        "final": {"start": [30.0, 20.0], "best": [10.0], "final": [25.0]},
        **more,
    }


def test_curves_and_trials() -> None:
    statistics = script("tuning_statistics")
    curve = statistics.best_so_far([None, 3.0, 4.0, 1.0])
    assert curve.tolist() == [np.inf, 3.0, 3.0, 1.0]
    assert [statistics.trials_to(curve, t) for t in (3.0, 2.0, 0.5)] == [2, 4, None]


def test_random_search_is_the_median_over_permutations() -> None:
    statistics = script("tuning_statistics")
    curves = statistics.random_curves([1.0] + [2.0] * 99)
    found = statistics.median_trials(curves, 1.0)
    assert curves.shape == (1000, 100) and 44 < found < 57  # the place of one in a hundred
    assert statistics.median_trials(curves, 2.0) == 1
    assert statistics.median_trials(curves, 0.5) is None
    assert (statistics.random_curves([1.0, 2.0]) == statistics.random_curves([1.0, 2.0])).all()


def test_both_searches_are_counted_on_one_set_of_measurements() -> None:
    found = script("tuning_statistics").summary(row())
    assert found["trials_ours"] == 2 and found["random_of"] == 4
    assert found["trials_random"] in (2.0, 2.5, 3.0)  # one setting of four reaches it


def test_the_table_and_a_complete_report_need_no_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, picture = tmp_path / "report.json", tmp_path / "curves.svg"
    facts = {"model": "zoo:resnet50", "trials": 2, "threads": 1, "seed": 0}
    early = row(final={"start": [20.0], "best": [10.0]})  # MetaSchedule had nothing
    report.write_text(json.dumps(facts | {"layers": {"a": row(), "b": early}}))
    arguments = ["--report", str(report), "--layers", "a,b", "--trials", "2"]
    tuning = script("tuning")
    assert tuning.main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| a | 4 | 20.0 | 10.0 | 2.000 | 2 | ")
    assert lines[1].endswith("| 3 | none yet | 25.0 | 2 | 10 | 2.50 |")
    assert lines[2].endswith("| none yet | none yet | 2 | 10 | - |")
    with pytest.raises(SystemExit, match="asked for"):
        tuning.main([*arguments, "--seed", "1"])
    pytest.importorskip("matplotlib")
    assert tuning.main([*arguments, "--plot", str(picture)]) == 0
    assert picture.read_text().lstrip().startswith("<?xml")


def measuring(folder: Path, **options: Any) -> Candidates:
    folder.mkdir()
    builder = fakes.FakeBuilder(folder)
    return Candidates(builder, fakes.FakeMeasurer(builder, **options), folder)  # type: ignore[arg-type]


def test_our_search_is_taken_down_trial_by_trial(tasks: list[Task], tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    task = tasks[0]
    found = script("tuning_search").run_ours(
        task, measuring(tmp_path / "work"), tmp_path / "log.jsonl", 20, 0
    )
    _, first, relative = found["curve"][0]
    assert (first, relative) == (task.start, 1.0) and len(found["curve"]) == 20
    assert len({i for _, i, _ in found["curve"]}) == 20
    seconds = [s for s, _, _ in found["curve"]]
    assert seconds == sorted(seconds) and len(set(seconds)) == 3 and found["seconds"] > seconds[-1]
    best = min(r for _, _, r in found["curve"])
    assert fakes.speed(task.space[found["best"]]) / fakes.speed(task.space[task.start]) == best


def test_the_space_is_measured_once_and_what_is_known_is_random(
    tasks: list[Task], tmp_path: Path
) -> None:
    search, task = script("tuning_search"), tasks[0]
    bad = task.space[5]
    candidates = measuring(tmp_path / "all", wrong=lambda p: p == bad)
    found = search.measure_space(task, candidates, [3, 1], 60.0, 0)
    assert sorted(found["order"]) == list(range(len(task.space)))
    assert found["order"] != sorted(found["order"]) and found["relative"]["5"] is None
    start = fakes.speed(task.space[task.start])
    assert found["relative"]["3"] == pytest.approx(fakes.speed(task.space[3]) / start)
    tried = found["order"][2:4]
    short = search.measure_space(task, measuring(tmp_path / "short"), tried, 0.0, 0)
    assert set(map(str, tried)) <= set(short["relative"]) and len(short["relative"]) == 8
    assert short["order"] == found["order"][:8]


def test_the_counterpart_computes_the_same_numbers() -> None:
    workload = script("tuning_workload")
    task = fakes.tasks(cpu_target())[1][1]
    workload.check(task.layer)
    case = workload.workload_case(task.fused, task.layer, 0)
    executable = tvm.compile(
        tvm.IRModule({"main": workload.workload(task.layer)}), target=cpu_target()
    )
    out = tvm.runtime.tensor(np.zeros_like(case.outputs[0]))
    executable["main"](*map(tvm.runtime.tensor, case.inputs), out)
    assert case.matches([out.numpy()]) and np.ptp(out.numpy()) > 100


def test_layers_without_a_counterpart_are_refused() -> None:
    workload = script("tuning_workload")
    layer = fakes.tasks()[1][0].layer
    layer.ops.append(layer.ops[1])
    with pytest.raises(SystemExit, match="layer 'a' has no counterpart"):
        workload.check(layer)
