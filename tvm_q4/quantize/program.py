"""Saving and loading ``.pt2`` programs, with the metadata that a compiled library takes over."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from tvm_q4.errors import InputError
from tvm_q4.frontend.pt2_file import METADATA_FILE, read_pt2

_TRACED_FILE = re.compile(r'File "([^"]+)"')


def save_program(
    program: ExportedProgram, path: str | Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a ``.pt2`` file; `path` appears only when it is complete.

    The source lines that torch recorded are kept, but with short file names (`program` is changed
    so), because a shared file should not tell where its author's folders are.

    Parameters
    ----------
    program : ExportedProgram
        Any program, quantized or not.
    path : str or Path
        Must end in ``.pt2``.
    metadata : mapping, optional
        JSON object stored in the file as ``tvm_q4.json``: ``name``, ``transform`` (``imagenet`` or
        ``cifar10``) and ``classes``.

    Raises
    ------
    InputError
        If the path does not end in ``.pt2`` or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        msg = f"output path '{path}' must end in .pt2"
        raise InputError(msg)
    _shorten_traces(program)
    files = {METADATA_FILE: json.dumps(dict(metadata or {}))}
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            partial = Path(folder) / path.name
            torch.export.save(program, partial, extra_files=files)
            partial.replace(path)
    except (OSError, RuntimeError) as error:
        msg = f"output path '{path}' cannot be written: {str(error).splitlines()[0]}"
        raise InputError(msg) from error


def load_program(path: str | Path) -> tuple[ExportedProgram, dict[str, Any]]:
    """Read a ``.pt2`` file; return the program and its metadata (empty where it has none).

    Raises
    ------
    InputError
        If the file is missing, is not a program of ``torch.export.save``, or could run code; see
        `tvm_q4.frontend.pt2_file`.
    """
    file = read_pt2(path)
    return file.program, file.metadata


def _shorten_traces(program: ExportedProgram) -> None:
    """Cut folders from recorded source lines and drop ids that differ from run to run."""
    for node in program.graph.nodes:
        node.meta.pop("from_node", None)
        trace = node.meta.get("stack_trace")
        if trace:
            node.meta["stack_trace"] = _TRACED_FILE.sub(
                lambda match: f'File "{_short_name(match[1])}"', trace
            )


def _short_name(path: str) -> str:
    """Return the path below site-packages or the working folder, else the file's name."""
    for root in ("/site-packages/", f"{Path.cwd().as_posix()}/"):
        if root in path:
            return path.split(root, 1)[1]
    return Path(path).name
