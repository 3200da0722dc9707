"""``tvm-q4 compare``: its output, exit codes and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tvm_q4
from tests.cli.conftest import Tool

pytest.importorskip("matplotlib", reason="plots need matplotlib: install tvm-q4[compare]")


def test_json_is_the_report(tool: Tool, pt2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--rounds", 1, "--seconds", 0, "-o", out)
    done = tool("compare", pt2, "--config", f"a={pt2}", *flags, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json == json.loads((out / "report.json").read_text())
    text = tool("compare", pt2, "--config", f"a={pt2}", *flags)
    assert text.code == 0
    assert "bit-exact" in text.out
    assert f"written to {out}/report.html" in text.out


def test_a_library_that_is_not_exact_is_exit_code_1(
    tool: Tool, pt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"bit_exact": False, "n": 2, "first_mismatch": None}
    monkeypatch.setattr(tvm_q4, "verify", lambda *_, **__: wrong)
    flags = ("--rounds", 1, "--seconds", 0, "-o", tmp_path)
    done = tool("compare", pt2, "--config", pt2, *flags)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "error: not bit-exact with the reference: small"
    assert (tmp_path / "report.html").exists()


def test_refusals(tool: Tool, pt2: Path, tmp_path: Path) -> None:
    assert "--config" in tool("compare", pt2, "-o", tmp_path).refused()
    line = tool("compare", pt2, "--config", pt2, "--config", pt2, "-o", tmp_path).refused()
    assert "'small' is there 2 times" in line
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in tool("compare", pt2, "--config", pt2, "-o", file).refused()
    quantized = tool("compare", pt2, "--config", "float", "-o", tmp_path / "x").refused()
    assert "quantized already" in quantized
