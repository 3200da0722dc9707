"""``tvm-q4 latency``: tables of given models, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Tool

TARGET = ("--target", "nvidia/nvidia-t4")


def test_a_table_of_given_models(tool: Tool, pt2: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    models = ("--at8", pt2, "--at4", pt2)
    done = tool("latency", "net", *models, *TARGET, "--log", "hawq-v3-t4", "-o", table)
    assert done.code == 0
    assert "is not used for sm_75, batch " in done.err, "the table is of batch 8"
    assert "all else: " in done.out and "predicted" in done.out
    found = json.loads(table.read_text())
    assert found["obtained"] == [{"source": "predicted", "device": "sm_75"}]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--choices", "4,6"), "choice '6' is unknown; write some of 4,8,w4a8"),
        (("--log", "none.jsonl"), "tuning log 'none.jsonl' cannot be read"),
        (("--arch", "resnet18", "--at8", "a.onnx"), "model 'a.onnx' is no HAWQ checkpoint"),
    ],
)
def test_bad_input_is_one_line(tool: Tool, arguments: tuple[str, ...], says: str) -> None:
    assert says in tool("latency", "zoo:resnet18", *TARGET, *arguments).refused()


def test_published_times_are_not_compiled_from(tool: Tool, pt2: Path, tmp_path: Path) -> None:
    options = ("--tuning-log", "hawq-v3-t4", "-o", tmp_path / "x.so")
    line = tool("compile", pt2, *options).refused()
    assert "'hawq-v3-t4' holds published times, which no kernel can be compiled from" in line
