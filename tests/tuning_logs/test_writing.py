"""Appending by several processes, repairing, merging."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tuning_logs.test_records import BASE, write
from tvm_q4.errors import InputError
from tvm_q4.tuning_logs import writing
from tvm_q4.tuning_logs.records import read_log
from tvm_q4.tuning_logs.reports import best_rows
from tvm_q4.tuning_logs.writing import append, check_appendable, entry, locked, merge_logs

_APPEND = """
import json, sys
from tvm_q4.tuning_logs.writing import append
path, name, base = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for number in range(40):
    base["signature"] = f"{name} {number} " + "x" * 3000
    append(path, [base] * 3)
"""


def test_two_writers_do_not_break_each_others_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-c", _APPEND, str(log)]
    writers = [subprocess.Popen([*command, name, json.dumps(BASE)]) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    names = [json.loads(line)["signature"].split()[:2] for line in log.read_text().splitlines()]
    assert len(names) == 2 * 40 * 3
    # A batch is one write: its lines stand together.
    for batch in range(0, len(names), 3):
        assert names[batch] == names[batch + 1] == names[batch + 2]


def test_an_unfinished_line_does_not_swallow_the_next_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = write(tmp_path / "log.jsonl", BASE)
    with log.open("ab") as file:
        file.write(json.dumps(BASE).encode()[:40])
    append(log, [BASE | {"signature": "next"}])
    with caplog.at_level(logging.WARNING):
        assert [record.signature for record in read_log(log)] == ["s", "next"]
    assert "log.jsonl:2: skipped, not JSON" in caplog.text


def test_an_entry_is_a_record(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    made = entry(
        arch="sm_80", signature="s", rule="r", params={"a": 1}, times_us=[2.0, 1.0000004, 4.0],
        checked=True, facts={"device": "GPU", "threads": 3}, start_us=[5.0, 3.0], again=True,
    )  # fmt: skip
    append(log, [made])
    append(log, [])
    (record,) = read_log(log)
    assert (record.time_us, record.low_us, record.start_us) == (2.0, 1.0, 3.0)
    assert record.again and record.checked and record.device == "GPU" and record.date
    assert json.loads(log.read_text())["threads"] == 3


def test_a_lock_that_stays_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LOCK_LIMIT_S", 0.1)
    log = write(tmp_path / "log.jsonl", BASE)
    before = log.read_bytes()
    with locked(log), pytest.raises(InputError, match="is locked by another process"):
        append(log, [BASE])
    assert log.read_bytes() == before


def test_merging_keeps_every_record_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = BASE | {"signature": "one"}, BASE | {"signature": "two"}
    a = write(tmp_path / "a.jsonl", one, "broken", BASE)
    b = write(tmp_path / "b.jsonl", BASE, two)
    result = merge_logs([a, b], tmp_path / "c.jsonl")
    assert (result["records"], result["duplicates"]) == (3, 1)
    merged = [record.signature for record in read_log(tmp_path / "c.jsonl")]
    assert merged == ["one", "s", "two"]
    assert merge_logs([tmp_path / "c.jsonl", b], tmp_path / "c.jsonl")["records"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_merge_that_fails_leaves_nothing(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", BASE)
    output = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="schema 2"):
        merge_logs([a, write(tmp_path / "b.jsonl", BASE | {"schema": 2})], output)
    with pytest.raises(InputError, match="cannot be read"):
        merge_logs([tmp_path / "missing.jsonl"], output)
    with pytest.raises(InputError, match="no log to merge"):
        merge_logs([], output)
    assert not output.exists()
    with pytest.raises(InputError, match="is not a folder"):
        merge_logs([a], tmp_path / "none" / "out.jsonl")


def test_a_folder_cannot_be_a_log(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "log.jsonl"):
        with pytest.raises(InputError):
            check_appendable(path)
        with pytest.raises(InputError, match="cannot be written"):
            append(path, [BASE])


def test_the_report_has_a_row_a_signature_and_arch(tmp_path: Path) -> None:
    fast = BASE | {"times_us": [0.5], "params": {"a": 2}}
    sure = BASE | {"times_us": [0.45, 0.4, 0.6], "params": {"a": 3}, "again": True}
    gpu = BASE | {"arch": "sm_75"}
    log = write(tmp_path / "log.jsonl", BASE, fast, gpu, sure, BASE | {"checked": False})
    rows = best_rows(log)
    assert [(row["arch"], row["signature"]) for row in rows] == [("x86-64", "s"), ("sm_75", "s")]
    assert rows[0]["params"] == {"a": 3} and rows[0]["records"] == 4
    assert (rows[0]["time_us"], rows[0]["low_us"], rows[0]["again"]) == (0.45, 0.4, True)
