"""``tune_model``: what it refuses, and a real layer tuned on this CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tune import fakes
from tvm_q4.compiler import Options, compile_module
from tvm_q4.errors import EnvironmentMismatch, InputError, TargetError
from tvm_q4.targets import cpu_target
from tvm_q4.tune import list_tasks, tune_model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"minutes": 0.0}, "minutes is 0"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"early_stop": 0}, "early_stop is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"log": "no/such/folder/log.jsonl"}, "is not a folder; create it first"),
        ({"log": "."}, "is not a regular file"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        tune_model(fakes.network(), **{"log": tmp_path / "log.jsonl", **options})
    assert list(tmp_path.iterdir()) == []


def test_unknown_tasks_are_refused_before_anything_runs(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    with pytest.raises(InputError, match="task 'z' does not exist"):
        tune_model(fakes.network(), log=tmp_path / "log.jsonl", tasks="a,z")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["nvidia/nvidia-t4", "cuda"])
def test_a_gpu_that_is_not_here_names_what_to_do(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xgboost")
    from tvm_q4.errors import LibraryError
    from tvm_q4.library import cuda_device

    def none() -> Any:
        raise LibraryError("there is no GPU")

    monkeypatch.setattr(cuda_device, "open_device", none)
    with pytest.raises(TargetError, match=r"there is no GPU; .*--rpc .*--bundle DIR") as caught:
        tune_model(fakes.network(), log=tmp_path / "log.jsonl", target=target)
    assert "\n" not in str(caught.value)


def test_another_cpu_cannot_be_measured_here(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    target = {"kind": "llvm", "mcpu": "bonnell"}
    with pytest.raises(TargetError, match="'bonnell' cannot be measured here"):
        tune_model(fakes.network(), log=tmp_path / "log.jsonl", target=json.dumps(target))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(EnvironmentMismatch, match=r"tvm-q4\[tune\]"):
        tune_model(fakes.network(), log=tmp_path / "log.jsonl")


def test_the_list_of_tasks_needs_no_device() -> None:
    found = list_tasks(fakes.network(), target="nvidia/nvidia-a100")
    assert [task["layers"] for task in found] == [["a", "b"], ["c"]]
    assert all(task["arch"] == "sm_80" and task["settings"] > 1 for task in found)
    assert list_tasks(fakes.network(), tasks="c", target="cuda:sm_75")[0]["index"] == 1


@pytest.mark.slow
def test_a_layer_is_tuned_on_this_cpu_and_compiled_as_measured(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    log = tmp_path / "log.jsonl"
    result = tune_model(fakes.network(), log=log, trials=4, tasks="c", threads=1)
    assert result["trials"] == result["measured"] == 4
    (row,) = result["tasks"]
    assert row["confirmed"] and 0 < row["best_us"] <= row["start_us"]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(record["checked"] and record["threads"] == 1 for record in records)
    again = tune_model(fakes.network(), log=log, trials=4, tasks="c", threads=1)
    assert again["measured"] == 0 and again["tasks"][0]["best_params"] == row["best_params"]
    options = Options(tuning_log=(str(log),))
    layers = compile_module(fakes.network(), cpu_target(), options).metadata["layers"]
    assert [layer["source"] for layer in layers] == ["predicted", "predicted", "measured"]
    assert layers[2]["rule_params"] == row["best_params"]
