"""Intermediate results: made once for the same facts, and whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tvm_q4.comparing.store import Store, digest
from tvm_q4.json_file import write_text


def test_a_file_is_made_once_for_the_same_facts(tmp_path: Path) -> None:
    store, made = Store(tmp_path / "work"), []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("x")

    first = store.file({"a": 1, "b": 2}, ".so", make)
    assert store.file({"b": 2, "a": 1}, ".so", make) == first
    assert Store(tmp_path / "work").file({"a": 1, "b": 2}, ".so", make) == first
    assert store.file({"a": 1, "b": 3}, ".so", make) != first
    assert len(made) == 2


def test_json_is_computed_once(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def make() -> dict[str, Any]:
        calls.append(1)
        return {"top1": 0.1 + 0.2}

    assert store.json({"x": None}, make) == store.json({"x": None}, make) == {"top1": 0.1 + 0.2}
    assert calls == [1]


def test_what_was_interrupted_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.json({}, interrupted)
    assert list(tmp_path.iterdir()) == []
    assert store.json({}, lambda: {"a": 1}) == {"a": 1}


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_digests_follow_content(tmp_path: Path) -> None:
    file, other, folder = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "images"
    file.write_text("1")
    other.write_text("1")
    assert digest(file) == digest(other)
    before = digest(f"zoo:resnet18@{file}")
    file.write_text("2")
    assert digest(file) != digest(other)
    assert digest(f"zoo:resnet18@{file}") != before
    assert digest("zoo:resnet18@uniform8") != digest("zoo:resnet18@uniform4")
    folder.mkdir()
    empty = digest(folder)
    (folder / "x.png").write_bytes(b"1")
    assert digest(folder) != empty
    assert digest(None) is None
