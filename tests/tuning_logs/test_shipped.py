"""Logs that come with the package: found by name, and every line of them is a record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_q4.errors import InputError
from tvm_q4.tuning_logs import shipped
from tvm_q4.tuning_logs.records import best_records, parse_line, read_log
from tvm_q4.tuning_logs.shipped import find_log, shipped_logs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with one log, and another folder to work in."""
    package, work = tmp_path / "package", tmp_path / "work"
    package.mkdir()
    work.mkdir()
    (package / "some_cpu.jsonl").touch()
    monkeypatch.setattr(shipped, "FOLDER", package)
    monkeypatch.chdir(work)
    return package


def test_a_name_without_a_path_is_a_shipped_log(folder: Path) -> None:
    assert find_log("some_cpu") == folder / "some_cpu.jsonl"
    assert list(read_log("some_cpu")) == []


def test_a_file_of_that_name_goes_first(folder: Path) -> None:
    Path("some_cpu").touch()
    assert find_log("some_cpu") == Path("some_cpu")


@pytest.mark.parametrize("log", ["other_cpu", "some_cpu.jsonl", "./some_cpu", "elsewhere/some_cpu"])
def test_anything_else_is_a_path(folder: Path, log: str) -> None:
    assert find_log(log) == Path(log)


def test_a_log_that_is_not_there_names_those_that_come_along(folder: Path) -> None:
    with pytest.raises(InputError, match=r"come.* with tvm-q4: some_cpu$"):
        best_records(["other_cpu"], "some_cpu")


@pytest.mark.parametrize("name", shipped_logs())
def test_shipped_logs_hold_checked_records_of_one_arch(name: str) -> None:
    records = [parse_line(line) for line in find_log(name).read_bytes().splitlines()]
    assert records and all(r.checked for r in records)
    assert {r.arch for r in records} == {name}
    assert len({(r.signature, str(r.params)) for r in records}) == len(records)
