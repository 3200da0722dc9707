"""A whole run with a fake device: what is measured, recorded, continued, refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.tune.fakes import session, speed
from tvm_q4.errors import CheckFailed, TargetError
from tvm_q4.tune.session import PLACEMENTS, Budget
from tvm_q4.tune.task import Task, params_key
from tvm_q4.tune.workers import Failure
from tvm_q4.tuning_logs.records import Record, best_records, read_log

pytest.importorskip("xgboost")


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_the_best_is_found_measured_again_and_recorded(
    tasks: list[Task], tmp_path: Path, log: Path
) -> None:
    run, _ = session(tmp_path / "work", log, tasks)
    run.run(Budget())
    best = best_records([log], "cascadelake")
    for search in run.searches:
        task = search.task
        assert search.best is not None and search.confirmed == search.best
        assert speed(task.space[search.best]) == min(map(speed, task.space))
        record = best[task.signature]
        assert record.again and speed(record.params) == speed(task.space[search.best])
        assert search.best_us == pytest.approx(record.low_us)
        assert search.trials < len(task.space)  # stopped early


def test_records_say_what_was_measured(tasks: list[Task], tmp_path: Path, log: Path) -> None:
    run, measurer = session(tmp_path / "work", log, tasks[:1])
    run.run(Budget(trials=10))
    found = lines(log)
    single = [entry for entry in found if "again" not in entry]
    assert len(single) == 10 and len({params_key(e["params"]) for e in single}) == 10
    for entry in found:
        us = speed(entry["params"])
        samples = [us * 1.5, us, us * 1.1] * (PLACEMENTS if "again" in entry else 1)
        assert entry["times_us"] == pytest.approx(samples, rel=1e-3)
        assert entry["signature"] == tasks[0].signature and entry["checked"] is True
        assert (entry["schema"], entry["device"], entry["threads"]) == (1, "fake", 1)
    assert measurer.timed
    assert len(list(read_log(log))) == len(found)


def test_trials_are_shared_and_counted_over_runs(
    tasks: list[Task], tmp_path: Path, log: Path
) -> None:
    run, _ = session(tmp_path / "work", log, tasks)
    run.run(Budget(trials=5))
    assert run.trials == 5 and all(search.trials >= 2 for search in run.searches)
    again, measurer = session(tmp_path / "more", log, tasks)
    again.resume(list(read_log(log)))
    assert again.trials == 5
    again.run(Budget(trials=5))
    assert again.trials == 5 and measurer.timed == []


def test_a_killed_run_loses_its_batch_and_is_continued(
    tasks: list[Task], tmp_path: Path, log: Path
) -> None:
    def kill(call: int) -> None:
        if call == 2:
            raise KeyboardInterrupt

    first, _ = session(tmp_path / "work", log, tasks, hook=kill)
    with pytest.raises(KeyboardInterrupt):
        first.run(Budget())
    before = [params_key(e["params"]) + e["signature"] for e in lines(log)]
    assert len(before) == 16
    second, _ = session(tmp_path / "more", log, tasks)
    second.resume(list(read_log(log)))
    assert second.trials == 16
    second.run(Budget())
    single = [params_key(e["params"]) + e["signature"] for e in lines(log) if "again" not in e]
    assert max(Counter(single).values()) == 1
    for search in second.searches:
        assert search.best is not None
        assert speed(search.task.space[search.best]) == 100


def test_a_seed_gives_one_run(tasks: list[Task], tmp_path: Path) -> None:
    def records(name: str, seed: int) -> list[str]:
        log = tmp_path / f"{name}.jsonl"
        run, _ = session(tmp_path / name, log, tasks, seed=seed)
        run.run(Budget(trials=30))
        return [params_key(entry["params"]) for entry in lines(log)]

    assert records("a", 1) == records("b", 1) != records("c", 2)


def test_wrong_bits_are_never_recorded_as_checked(
    tasks: list[Task], tmp_path: Path, log: Path
) -> None:
    best = min(tasks[0].space, key=speed)
    run, _ = session(tmp_path / "work", log, tasks[:1], wrong=lambda p: p == best)
    run.run(Budget())
    assert [e["checked"] for e in lines(log) if e["params"] == best] == [False]
    (record,) = best_records([log], "cascadelake").values()
    assert record.params != best
    assert run.searches[0].task.space.index(best) in run.searches[0].failed
    again, measurer = session(tmp_path / "more", log, tasks[:1])
    again.resume(list(read_log(log)))
    again.run(Budget(trials=run.trials + 8))
    assert best not in measurer.timed


def test_a_start_with_wrong_bits_is_an_error_at_once(
    tasks: list[Task], tmp_path: Path, log: Path
) -> None:
    start = tasks[0].space[tasks[0].start]
    run, _ = session(tmp_path / "work", log, tasks[:1], wrong=lambda p: p == start)
    with pytest.raises(CheckFailed, match=r"layer 'a': cpu.direct_conv2d .* is not bit-exact"):
        run.run(Budget())
    assert not log.exists()


def test_candidates_that_do_not_build_are_passed_over(
    tasks: list[Task], tmp_path: Path, log: Path
) -> None:
    start = tasks[0].space[tasks[0].start]
    run, _ = session(
        tmp_path / "work", log, tasks[:1], broken=lambda p: p["blocks"] == 1 and p != start
    )
    run.run(Budget())
    search = run.searches[0]
    assert search.failed and all(search.task.space[i]["blocks"] == 1 for i in search.failed)
    assert search.best is not None
    assert not any(e["params"]["blocks"] == 1 and e["params"] != start for e in lines(log))


def test_a_device_that_dies_once_loses_nothing(
    tasks: list[Task], tmp_path: Path, log: Path
) -> None:
    run, _ = session(
        tmp_path / "work", log, tasks[:1], hook=lambda n: Failure("gone") if n == 1 else None
    )
    run.run(Budget(trials=16))
    assert len([e for e in lines(log) if "again" not in e]) == 16
    assert not run.searches[0].failed


def test_a_dead_device_ends_the_run_and_keeps_the_log(
    tasks: list[Task], tmp_path: Path, log: Path
) -> None:
    run, measurer = session(
        tmp_path / "work", log, tasks[:1], hook=lambda n: Failure("gone") if n > 0 else None
    )
    with pytest.raises(TargetError, match=r"3 batches in a row .* 'a': gone; what was measured"):
        run.run(Budget())
    assert len(lines(log)) == 8 and measurer.calls == 7


def test_minutes_end_a_run(tasks: list[Task], tmp_path: Path, log: Path) -> None:
    run, measurer = session(tmp_path / "work", log, tasks)
    run.run(Budget(seconds=0.0))
    assert measurer.timed == [] and not log.exists()


def test_lucky_single_times_do_not_win(tasks: list[Task], tmp_path: Path, log: Path) -> None:
    task = tasks[0]
    lucky = max(task.space, key=speed)
    seen: list[int] = []

    def noisy(params: Any) -> float:
        if params == lucky and not seen:
            seen.append(1)
            return 1.0
        return speed(params)

    run, _ = session(tmp_path / "work", log, [task], speed=noisy)
    similar = "conv2d n1 c1 1x1 o1 w8"
    run.resume([Record(task.arch, similar, task.rule.name, lucky, 1.0, checked=True)])
    run.run(Budget())
    assert seen
    (record,) = best_records([log], "cascadelake").values()
    assert record.params != lucky and speed(record.params) == 100


def test_what_did_well_for_a_similar_layer_is_tried_first(
    tasks: list[Task], tmp_path: Path, log: Path
) -> None:
    first, _ = session(tmp_path / "work", log, tasks[:1])
    first.run(Budget())
    best = best_records([log], "cascadelake")[tasks[0].signature].params
    second, measurer = session(tmp_path / "more", log, tasks[1:])
    second.resume(list(read_log(log)))
    second.run(Budget(trials=2))
    assert tasks[1].space[tasks[1].start] in measurer.timed and best in measurer.timed
