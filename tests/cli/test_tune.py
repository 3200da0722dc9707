"""``tvm-q4 tune`` on the command line: tasks, logs, refusals; searches are tested in tests/tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Tool
from tests.tuning_logs.test_records import BASE, write
from tvm_q4.targets import cpu_target, target_arch


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "log.jsonl", BASE, BASE | {"signature": "t", "times_us": [7.25]})


def test_the_list_of_tasks(tool: Tool, pt2: Path) -> None:
    found = tool("tune", pt2, "--tasks", "list", "--json").json["tasks"]
    assert [task["layers"] for task in found] == [["conv"]]  # the linear layer has one setting
    shown = tool("tune", pt2, "--tasks", "list", "--target", "cuda:sm_80")
    assert shown.code == 0 and len(shown.out.splitlines()) == 2
    assert "conv2d n1 c3 8x9" in shown.out and "sm_80" in shown.out


def test_best_is_one_line_a_signature(tool: Tool, log: Path) -> None:
    shown = tool("tune", "--best", log)
    assert shown.code == 0 and len(shown.out.splitlines()) == 2
    assert "7.2 us (measured once)  r a=1  t" in shown.out
    rows = tool("tune", "--best", log, "--json").json["best"]
    assert [row["signature"] for row in rows] == ["s", "t"]


def test_a_broken_line_is_a_warning(tool: Tool, log: Path) -> None:
    with log.open("a") as file:
        file.write("{broken\n")
    shown = tool("tune", "--best", log)
    assert shown.code == 0 and len(shown.out.splitlines()) == 2
    assert f"{log}:3: skipped" in shown.err


def test_merge(tool: Tool, log: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", BASE, BASE | {"signature": "u"})
    merged = tmp_path / "merged.jsonl"
    shown = tool("tune", "--merge", log, other, "-o", merged)
    assert (shown.code, shown.out) == (0, f"{merged}: 3 records, 1 equal lines left out\n")
    assert len(merged.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one MODEL, found 0"),
        (["MODEL"], "needs --log FILE"),
        (["MODEL", "MODEL", "--log", "LOG"], "give one MODEL, found 2"),
        (["MODEL", "--log", "LOG", "--tasks", "nothing"], "task 'nothing' does not exist"),
        (["MODEL", "--log", "LOG", "--trials", "0"], "--trials"),
        (["MODEL", "--log", "LOG", "--minutes", "0"], "--minutes"),
        (["MODEL", "--log", "none/log.jsonl"], "is not a folder"),
        (["MODEL", "--log", "LOG", "--target", "cuda"], "--bundle DIR"),
        (["MODEL", "--log", "LOG", "-o", "LOG"], "-o goes with --merge"),
        (["MODEL", "--log", "SCHEMA"], "schema 2"),
        (["missing.pt2", "--log", "LOG"], "'missing.pt2' does not exist"),
        (["MODEL", "--log", "LOG", "--rpc", "127.0.0.1"], "HOST:PORT/KEY"),
        (["MODEL", "--log", "LOG", "--rpc", "127.0.0.1:1/k"], "no TVM tracker answers"),
        (["MODEL", "--bundle", "LOG"], "exists already"),
        (["MODEL", "--bundle", "NEW", "--minutes", "1"], "does not go with --minutes"),
        (["MODEL", "--bundle", "NEW", "--rpc", "a:1/k"], "does not go with --rpc"),
        (["MODEL", "--bundle", "NEW", "--tasks", "nothing"], "task 'nothing' does not exist"),
        (["--bundle", "NEW"], "give one MODEL, found 0"),
        (["--import", "LOG", "--log", "NEW"], "are of no bundle"),
        (["--import", "missing", "--log", "NEW"], "cannot be read"),
        (["--import", "LOG"], "--import needs --log FILE"),
        (["--import", "LOG", "--log", "NEW", "MODEL"], "--import takes no MODEL"),
        (["--import", "LOG", "--log", "NEW", "--trials", "3"], "does not go with --trials"),
        (["--import", "LOG", "--best"], "--best and --import are two commands"),
        (["--best"], "give one LOG, found 0"),
        (["--best", "missing.jsonl"], "cannot be read"),
        (["--best", "SCHEMA"], "this version reads 1"),
        (["--best", "LOG", "--trials", "3"], "does not go with --trials"),
        (["--best", "--merge", "LOG", "-o", "LOG"], "give one"),
        (["--merge", "LOG"], "--merge needs -o FILE"),
        (["--merge", "-o", "NEW"], "no log to merge"),
        (["--merge", "LOG", "SCHEMA", "-o", "NEW"], "schema 2"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    tool: Tool, pt2: Path, log: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    pytest.importorskip("xgboost")
    schema = write(tmp_path / "schema.jsonl", BASE | {"schema": 2})
    names: dict[str, Any] = {
        "MODEL": pt2, "LOG": log, "SCHEMA": schema, "NEW": tmp_path / "new.jsonl",
    }  # fmt: skip
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    line = tool("tune", *(names.get(a, a) for a in arguments)).refused()
    assert message in line
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_bundle_is_written_and_its_results_come_back(
    tool: Tool, pt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xgboost")
    from tests.tune.fakes import HollowBuilder
    from tests.tune.test_bundle import MEASURED
    from tvm_q4.tune import bundle

    monkeypatch.setattr(bundle, "Builder", HollowBuilder)
    folder, log = tmp_path / "board", tmp_path / "log.jsonl"
    shown = tool("tune", pt2, "--bundle", folder, "--trials", 3)
    assert shown.code == 0 and "3 candidates of 1 tasks" in shown.out
    assert "python board/run.py" in shown.out
    manifest = json.loads((folder / "bundle.json").read_text())
    results = folder / "results.jsonl"
    head = {"bundle": manifest["id"], "manifest": manifest}
    rows = (head, {"bundle": manifest["id"], **MEASURED}, {"bundle": "foreign"})
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = tool("tune", "--import", results, "--log", log)
    assert shown.code == 0 and "1 records added (0 not bit-exact)" in shown.out
    assert "1 lines skipped" in shown.out and f"{results}:3: skipped" in shown.err
    assert [r["time_us"] for r in tool("tune", "--best", log, "--json").json["best"]] == [2.5]


def test_compile_and_inspect_say_what_decided_the_parameters(
    tool: Tool, pt2: Path, tmp_path: Path
) -> None:
    (task,) = tool("tune", pt2, "--tasks", "list", "--json").json["tasks"]
    entry = {
        "arch": target_arch(cpu_target()), "signature": task["signature"],
        "rule": task["rule"], "params": task["start_params"],
    }  # fmt: skip
    log, library = write(tmp_path / "log.jsonl", BASE | entry), tmp_path / "net.so"
    assert tool("compile", pt2, "--tuning-log", log, "-o", library).code == 0
    layers = tool("inspect", library, "--json").json["metadata"]["layers"]
    assert {layer["name"]: layer["source"] for layer in layers} == {
        "conv": "measured", "fc": "fallback",
    }  # fmt: skip
    lines = tool("inspect", library).out.splitlines()
    assert any("conv" in line and "measured" in line for line in lines)
    assert any("fc" in line and "fallback" in line for line in lines)


def test_an_empty_log_leaves_predictions_and_does_not_satisfy_a_strict_compile(
    tool: Tool, pt2: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("")
    out = tmp_path / "net.so"
    assert tool("compile", pt2, "--tuning-log", log, "-o", out).code == 0
    shown = tool("inspect", out).out.splitlines()
    assert any("conv" in line and "predicted" in line for line in shown)
    assert any("fc" in line and "fallback" in line for line in shown)
    out.unlink()
    refused = tool("compile", pt2, "--tuning-log", log, "--strict-log", "-o", out)
    assert refused.code == 1 and not out.exists()
    (line,) = refused.err.splitlines()
    assert line.startswith("error: --strict-log: ")


@pytest.mark.parametrize("strict", [[], ["--strict-log"]])
def test_a_log_of_another_schema_is_refused_by_compile(
    tool: Tool, pt2: Path, tmp_path: Path, strict: list[str]
) -> None:
    log, out = write(tmp_path / "log.jsonl", BASE | {"schema": 2}), tmp_path / "net.so"
    line = tool("compile", pt2, "--tuning-log", log, *strict, "-o", out).refused()
    assert "schema 2" in line and not out.exists()


@pytest.mark.parametrize("target", ["vulkan", '{"kind": "opencl"}'])
def test_a_target_without_rules_is_refused(
    tool: Tool, pt2: Path, tmp_path: Path, target: str
) -> None:
    pytest.importorskip("xgboost")
    log = tmp_path / "log.jsonl"
    for more in (["--log", log], ["--tasks", "list"], ["--bundle", tmp_path / "bundle"]):
        line = tool("tune", pt2, "--target", target, *more).refused()
        assert "for which there are no kernels; use llvm or cuda" in line
    assert list(tmp_path.iterdir()) == []
