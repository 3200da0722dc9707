"""Reading of ``.pt2`` files without running anything that they hold.

`torch.export.load` unpickles weights marked so, custom objects and sample inputs, opens compiled
AOTInductor code, and evaluates symbolic sizes as Python; a model file could thus run code. Here the
archive is checked first, through torch's own archive reader so that no second reading of the zip
can differ, and refused where it holds any of these. What ``torch.export.save`` writes for a network
of plain tensors passes.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch.export import ExportedProgram
from torch.export.pt2_archive import constants as layout
from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

from tvm_q4.errors import InputError

METADATA_FILE = "tvm_q4.json"
_MODEL = layout.MODELS_FILENAME_FORMAT.format("model")
_SAMPLES = layout.SAMPLE_INPUTS_FILENAME_FORMAT.format("model")
_CONFIGS = (
    layout.WEIGHTS_CONFIG_FILENAME_FORMAT.format("model"),
    layout.CONSTANTS_CONFIG_FILENAME_FORMAT.format("model"),
)
_TARGET = re.compile(r"(torch\.ops|torch\._ops|_operator|math|torch\.sym)[\w.]*")
_SYMBOL = re.compile(
    r"('?[su]\d+'?|\d+|[-+*/(),= ]|Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CeilDiv"
    r"|True|False|positive|negative|nonnegative|nonzero|integer|int_oo|oo)*"
)


@dataclass(frozen=True)
class Pt2File:
    """What a ``.pt2`` file holds: the program, our metadata, its digest and who wrote it.

    `opset` names versions of operator sets: ``aten 10``.
    """

    program: ExportedProgram
    metadata: dict[str, Any]
    sha256: str
    torch_version: str
    opset: str


def read_pt2(path: str | Path) -> Pt2File:
    """Read a program that ``torch.export.save`` wrote.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Pt2File
        `metadata` is the JSON object stored as ``tvm_q4.json``, empty where there is none.

    Raises
    ------
    InputError
        If the file is missing, truncated, something else, or holds pickled objects or code.
    """
    data = _read(Path(path))
    where = f"'{path}'"
    reader = _open(data, where)
    try:
        names = reader.get_file_names()
        config = _checked(reader, names, where)
        extra = _metadata(reader, names, where)
        with _quiet():
            contents = load_pt2(io.BytesIO(data))
        program = contents.exported_programs["model"]
    except InputError:
        raise
    except Exception as error:  # torch reports a damaged archive with many exception types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"{where} is not a readable torch.export program ({reason[:200]})"
        raise InputError(f"{msg}; save it again with torch.export.save") from error
    version = str(config.get("torch_version", ""))
    return Pt2File(program, extra, hashlib.sha256(data).hexdigest(), version, _opset(config))


def _opset(config: dict[str, Any]) -> str:
    found = config.get("opset_version")
    return ", ".join(f"{k} {v}" for k, v in found.items()) if isinstance(found, dict) else ""


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"model '{path}' cannot be read: {error.strerror or error}") from error
    if not zipfile.is_zipfile(io.BytesIO(data)):
        kind = "is truncated or damaged" if data[:2] == b"PK" else "is not a .pt2 file"
        raise InputError(f"'{path}' {kind}; expected what torch.export.save writes")
    return data


def _open(data: bytes, where: str) -> PT2ArchiveReader:
    try:
        return PT2ArchiveReader(io.BytesIO(data))
    except Exception as error:  # torch's reader raises RuntimeError and AssertionError
        msg = f"{where} is a zip archive but not a torch.export program (torch.save's differ)"
        raise InputError(f"{msg}; save the model with torch.export.save") from error


class _quiet:
    """Silences torch's loading warnings, which would stand beside our one-line error."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("torch")
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)


def _checked(reader: PT2ArchiveReader, names: list[str], where: str) -> dict[str, Any]:
    """Refuse archives that hold anything but one program of plain tensors; return its JSON."""
    if _MODEL not in names:
        raise InputError(
            f"{where} holds no torch.export program; save the model with torch.export.save"
        )
    others = [n for n in names if n.startswith(layout.MODELS_DIR) and n != _MODEL]
    unsafe = [n for n in names if n.startswith((layout.AOTINDUCTOR_DIR, layout.EXECUTORCH_DIR))]
    unsafe += [
        n
        for n in names
        if n.startswith((layout.WEIGHTS_DIR, layout.CONSTANTS_DIR)) and n.endswith(".pt")
    ]
    if others or unsafe:
        found = (others + unsafe)[0]
        raise InputError(
            f"{where} holds '{found}', which is not read for safety; save only the exported program"
        )
    for config in _CONFIGS:
        _check_payload(json.loads(reader.read_string(config)), where)
    _check_samples(reader.read_bytes(_SAMPLES), where)
    program: dict[str, Any] = json.loads(reader.read_string(_MODEL))
    _check_program(program, where)
    return program


def _check_payload(config: dict[str, Any], where: str) -> None:
    for fqn, entry in config["config"].items():
        path = str(entry["path_name"])
        plain = path.startswith(
            (layout.WEIGHT_FILENAME_PREFIX, layout.TENSOR_CONSTANT_FILENAME_PREFIX)
        )
        if entry.get("use_pickle") or not plain:
            msg = f"{where} stores '{fqn}' as a pickled object, which is not read for safety"
            raise InputError(msg)


def _check_samples(data: bytes, where: str) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        msg = f"{where} stores sample inputs as objects, which are not read for safety"
        raise InputError(msg) from error


def _check_program(tree: Any, where: str) -> None:
    """Refuse symbolic sizes and call targets that are more than they should be."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            for key, pattern in (("expr_str", _SYMBOL), ("target", _TARGET)):
                text = item.get(key)
                if isinstance(text, str) and text and not pattern.fullmatch(text):
                    raise InputError(
                        f"{where} holds the {key} {text[:80]!r}, which is not read for safety"
                    )
            stack += item.values()
        elif isinstance(item, list):
            stack += item


def _metadata(reader: PT2ArchiveReader, names: list[str], where: str) -> dict[str, Any]:
    name = layout.EXTRA_DIR + METADATA_FILE
    text = reader.read_string(name) if name in names else ""
    try:
        found = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: its {METADATA_FILE} is not JSON ({error.msg}); save the model again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{where}: its {METADATA_FILE} is not a JSON object; save the model again")
    return found
