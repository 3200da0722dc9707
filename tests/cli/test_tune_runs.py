"""``tvm-q4 tune`` as processes: killed at any moment and continued, two at a time on one log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvm_q4.tuning_logs.records import read_log

BATCH = 8
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _needs_xgboost() -> None:
    pytest.importorskip("xgboost")


def command(model: Path, log: Path, trials: int, *more: object) -> list[str]:
    """A search of a small model by one thread."""
    options = ["--log", log, "--trials", trials, "--threads", 1, "--early-stop", 100, *more]
    return [sys.executable, "-m", "tvm_q4", "tune", str(model), *map(str, options), "--json"]


def begin(arguments: list[str]) -> subprocess.Popen[str]:
    """Start it as the leader of a session, which its workers are not part of."""
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, "the run is over"
        time.sleep(0.02)


def lines(log: Path) -> list[bytes]:
    return log.read_bytes().splitlines() if log.exists() else []


def singles(log: Path) -> list[str]:
    """Settings of a log that were measured in a search; every line must be a record."""
    found = [json.loads(line) for line in lines(log)]
    assert len(list(read_log(log))) == len(found)
    return [json.dumps(entry["params"]) for entry in found if not entry.get("again")]


def workers_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_run_that_was_killed_goes_on(pt2: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    arguments = command(pt2, log, 3 * BATCH)
    first = begin(arguments)
    wait_for(lambda: len(lines(log)) >= BATCH, first)
    workers = workers_of(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL
    assert workers
    wait_for(lambda: not any(map(is_running, workers)))  # nobody builds on behind its back
    before = lines(log)
    kept = singles(log)
    assert len(before) == len(kept) and len(kept) % BATCH == 0  # whole batches; only one was lost
    result = finish(begin(arguments))
    assert result["trials"] == 3 * BATCH
    assert result["measured"] == 3 * BATCH - len(kept)
    assert lines(log)[: len(before)] == before
    assert max(Counter(singles(log)).values()) == 1
    assert result["tasks"][0]["confirmed"]
    again = finish(begin(arguments))
    assert again["measured"] == 0 and again["trials"] == 3 * BATCH
    assert again["tasks"][0]["confirmed"]


def test_two_runs_share_a_log(pt2: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    runs = [begin([*command(pt2, log, BATCH, "--seed", seed), "-v"]) for seed in (1, 2)]
    results = [finish(run) for run in runs]
    assert [result["measured"] for result in results] == [BATCH, BATCH]
    assert len(singles(log)) == 2 * BATCH
    both = finish(begin(command(pt2, log, BATCH)))  # either's records count
    assert both["measured"] == 0 and both["trials"] >= BATCH
