"""Logs that come with the package: found by name, and every line of them is a record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_q4.errors import InputError
from tvm_q4.relay_passes.pipeline import to_fused, to_integer, to_kernels
from tvm_q4.targets import parse_target
from tvm_q4.tuning_logs import shipped
from tvm_q4.tuning_logs.records import best_records, parse_line, read_log
from tvm_q4.tuning_logs.shipped import find_log, shipped_logs
from tvm_q4.variants import variants


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


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_the_shipped_log_has_every_layer_of_the_shipped_networks(bits: str, batch: int) -> None:
    sources = choices(f"examples/models/resnet20_{bits}.pt2", batch)
    assert "predicted" not in sources and "measured" in sources


@pytest.mark.slow
@pytest.mark.parametrize("config", ["uniform8", "uniform4"])
@pytest.mark.parametrize("network", ["resnet18", "resnet34", "resnet50"])
def test_the_shipped_log_has_every_layer_of_larger_networks(network: str, config: str) -> None:
    sources = choices(f"zoo:{network}@{config}", 8)
    assert "predicted" not in sources and "measured" in sources


def choices(model: str, batch: int) -> list[str]:
    """Where the parameters of a network's layers come from, compiled for the log's CPU."""
    from tvm_q4.frontend import load_model

    target = parse_target('{"kind": "llvm", "mcpu": "emeraldrapids"}')
    records = best_records(["emeraldrapids"], "emeraldrapids")
    path = Path(__file__).resolve().parents[2] / model
    fused = to_fused(to_integer(load_model(path if path.exists() else model, batch=batch)))
    (variant,) = variants(target)
    calls = to_kernels(fused, variant.target, variant.rules, records.get).calls
    return [call.choice.source for call in calls]
