"""Write text and JSON files whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a file through a temporary name, so that nobody reads half of it."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_json(data: Any, path: str | Path, what: str) -> None:
    """Write through a temporary name, so that nobody reads half a file.

    Parameters
    ----------
    data : Any
        A JSON object.
    path : str or Path
    what : str
        What the file is, for the error message.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    try:
        write_text(Path(path), json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{what} '{path}' cannot be written: {error.strerror}") from None
