"""Damaged files of every kind that is read: one of our errors or a result, no crash, no hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutate import bytes_of, json_of
from tests.fuzz.readers import READERS, run

FAST, SLOW = 12, 1000
TOLERANT = "tuning-log"
"""Skips damaged lines with a warning, so hardly any file is refused."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", READERS)
def test_a_few_damaged_files(name: str) -> None:
    if name.startswith("onnx"):
        pytest.importorskip("onnx")
    refused = run(name, 0, FAST)
    assert refused > 0 or name == TOLERANT


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name: str) -> None:
    """In a process of its own, which a crash ends and which ends itself where one file hangs."""
    if name.startswith("onnx"):
        pytest.importorskip("onnx")
    command = [sys.executable, "-m", "tests.fuzz.readers", name, "100", str(SLOW)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-4000:]
    assert int(done.stdout.split()[-1]) > SLOW // 10 or name == TOLERANT


def test_damage_depends_on_the_seed_alone() -> None:
    text = '{"a": [1, 2, {"b": null}], "c": "x"}'
    assert json_of(text, Random(5)) == json_of(text, Random(5))
    assert len({json_of(text, Random(seed)) for seed in range(50)}) > 25
    assert bytes_of(b"abc" * 20, Random(5)) == bytes_of(b"abc" * 20, Random(5))
    assert len({bytes_of(b"abc" * 20, Random(seed)) for seed in range(50)}) > 40


def test_an_error_that_is_not_ours_is_reported_with_its_seed(monkeypatch) -> None:
    """The harness itself: a reader that lets a KeyError through does not pass."""
    from dataclasses import replace

    def read(path: Path) -> None:
        if path.read_bytes() != good:
            raise KeyError("x")

    def make(folder: Path) -> Path:
        (folder / "f").write_bytes(good)
        return folder / "f"

    good = b"[1, 2, 3]"
    reader = replace(READERS["bit-config"], make=make, file="f", damage=bytes_of, read=read)
    monkeypatch.setitem(READERS, "broken", reader)
    with pytest.raises(KeyError) as caught:
        run("broken", 7, 5)
    assert caught.value.__notes__ == ["this was seed 7 of broken"]
