"""What was made already: files named by a digest of all that they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvm_q4.json_file import write_text

_LENGTH = 20
"""Hexadecimal digits of a file's name."""


class Store:
    """A folder of intermediate results, with which an interrupted comparison goes on.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def file(self, facts: dict[str, Any], suffix: str, make: Callable[[Path], object]) -> Path:
        """The file that `facts` determine; `make` writes it, at once or not at all."""
        path = self.folder / f"{_key(facts)}{suffix}"
        if not path.exists():
            make(path)
        return path

    def json(self, facts: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The JSON object that `facts` determine, computed by `make` if it is not there."""
        path = self.file(facts, ".json", lambda path: write_text(path, json.dumps(make())))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def digest(spec: str | Path | None) -> str | None:
    """A digest of a file, of a folder's files by name, size and date, or of ``zoo:NAME[@CONFIG]``.

    None for nothing.
    """
    if spec is None:
        return None
    text = str(spec)
    if text.startswith("zoo:"):
        name, _, config = text.partition("@")
        return f"{name}@{digest(config) if Path(config).is_file() else config}"
    path = Path(text)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return _key({"files": stats})


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_LENGTH]
