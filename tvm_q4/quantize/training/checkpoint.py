"""Checkpoints: written whole or not at all, read without running code, used only where they fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tvm_q4.errors import InputError

FORMAT, VERSION = "tvm-q4/training-checkpoint", 1
_FILE = "checkpoint.pt"


def checkpoint_path(output: Path, workdir: str | Path | None) -> Path:
    """Return the checkpoint's path: in `workdir`, which is made, else beside the output."""
    if workdir is None:
        return output.with_name(f"{output.stem}.{_FILE}")
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / _FILE


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors and their names, by which settings tell models and data apart."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def save_checkpoint(path: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write `state`, with the settings that it belongs to.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    content = {"format": FORMAT, "version": VERSION, "settings": dict(settings), **state}
    partial = path.with_name(f".{path.name}.partial")
    try:
        torch.save(content, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        msg = f"checkpoint '{path}' cannot be written: {str(error).splitlines()[0]}"
        raise InputError(msg) from error


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what `save_checkpoint` wrote, tensors on the CPU; None where there is no such file.

    Raises
    ------
    InputError
        If the file is damaged, something else, or was written with other settings.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports a damaged file with many exception types
        msg = f"checkpoint '{path}' cannot be read (damaged or no checkpoint); remove it"
        raise InputError(msg) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        msg = f"'{path}' is not a checkpoint of tvm-q4; remove it or use another folder"
        raise InputError(msg)
    if content.get("version") != VERSION:
        msg = f"checkpoint '{path}' has version {content.get('version')!r}, this release reads 1"
        raise InputError(f"{msg}; remove it to start again")
    _check_settings(path, content["settings"], settings)
    return content


def _check_settings(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            was, now = (_short(values.get(name)) for values in (found, wanted))
            msg = f"checkpoint '{path}' was made with {name} {was}, this run has {now}"
            raise InputError(f"{msg}; use the same settings, another folder, or remove it")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
