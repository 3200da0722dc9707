"""``tvm-q4 plan``: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Tool
from tests.planning.tables import table
from tvm_q4.quantize.config import load_bit_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A layer table's file, alone in its folder."""
    found = tmp_path / "table" / "table.json"
    found.parent.mkdir()
    found.write_text(json.dumps(table()))
    return found


def test_json_has_the_contracts_keys(tool: Tool, path: Path) -> None:
    done = tool("plan", "--table", path, "--limit", "size=0.5", "--json")
    assert done.code == 0
    assert done.json["status"] == "optimal"
    assert done.json["bits"] == {"conv1": 8, "conv2": 8, "conv3": 8, "fc": 4}
    assert done.json["sensitivity"] == 10.0 and done.json["budgets"] == {"size_bytes": 90}
    assert set(done.json["costs"]) == {"size_bytes", "bops_total", "latency_ms"}
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_table_for_people_and_bit_config(tool: Tool, path: Path, tmp_path: Path) -> None:
    output = tmp_path / "bits.json"
    limits = ("--limit", "size=0.5", "--limit", "latency_ms=9")
    done = tool("plan", "--table", path, *limits, "--fix", "conv1=8", "-o", output)
    assert done.code == 0
    for part in ("fc", "all 8", "all 4", "limit size=0.5", "binding", "next step: ", "written"):
        assert part in done.out
    assert set(load_bit_config(output).layers) == {"fc"}


def test_several_tables(tool: Tool, path: Path, tmp_path: Path) -> None:
    data = table()
    for layer in data["layers"]:
        del layer["latency_ms"]
    (tmp_path / "a.json").write_text(json.dumps(data))
    limit = ("--limit", "latency=0.5", "--json")
    repeated = tool("plan", "--table", tmp_path / "a.json", "--table", path, *limit).json
    listed = tool("plan", "--table", tmp_path / "a.json", path, *limit).json
    assert repeated == listed and "latency_ms" in listed["costs"]


def test_sweep(tool: Tool, path: Path, tmp_path: Path) -> None:
    arguments = ("plan", "--table", path, "--sweep", "latency", "--points", "4")
    points = tool(*arguments, "--json").json["points"]
    assert [point["fraction"] for point in points] == [0.0, 1 / 3, 2 / 3, 1.0]
    shown = tool(*arguments, "-o", tmp_path / "plans")
    assert "4 bit configs written" in shown.out and "0.3333" in shown.out
    assert len(list((tmp_path / "plans").iterdir())) == 4


def test_infeasible_limits_exit_with_1(tool: Tool, path: Path, tmp_path: Path) -> None:
    output = tmp_path / "bits.json"
    done = tool("plan", "--table", path, "--limit", "size_bytes=59", "-o", output, "--json")
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: limit size_bytes=59 is too tight by 1 bytes")
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "weight=1"], "limit 'weight' is unknown"),
        (["--limit", "size=half"], "limit 'size' is half"),
        (["--limit", "size=0.5", "--fix", "conv9=8"], "layer 'conv9' to fix is not in the table"),
        (["--limit", "size=0.5", "--choices", "2"], "choice '2' is unknown"),
        (["--limit", "size=0.5", "--points", "9"], "--points is for a sweep"),
        (["--sweep", "latency", "--points", "1"], "--points"),
        (["--sweep", "nothing"], "sweep 'nothing' is unknown"),
        ([], "there is no limit"),
        (["--limit", "size=0.5", "-o", "missing/bits.json"], "cannot be written"),
    ],
)
def test_bad_options(tool: Tool, path: Path, arguments: list[str], message: str) -> None:
    assert message in tool("plan", "--table", path, *arguments).refused()


def test_bad_tables(tool: Tool, path: Path, tmp_path: Path) -> None:
    limit = ("--limit", "size=0.5")
    assert "missing.json" in tool("plan", "--table", tmp_path / "missing.json", *limit).refused()
    assert "--table" in tool("plan", *limit).refused()
    other = tmp_path / "other.json"
    data = table()
    data["layers"][0]["params"] = 7
    other.write_text(json.dumps(data))
    line = tool("plan", "--table", path, "--table", other, *limit).refused()
    assert "other.json" in line and "layer 'conv1': params is 7 and 8" in line


def test_help_has_an_example(tool: Tool) -> None:
    done = tool("plan", "--help")
    assert done.code == 0 and "--sweep latency --points 9" in done.out
