"""Tuning logs: measured records of layers, one JSON object a line.

A record stores a rule's parameters, not TVM's traces, so it survives TVM's releases. Keys:
``schema`` (1), ``tvm`` and ``tvm_q4`` (versions), ``device`` (its name), ``arch`` (a CPU's LLVM
name or ``sm_XX``), ``signature``, ``rule``, ``params``, ``times_us`` (all samples), ``checked``
(bit-exact against the reference executor) and ``date``.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError

SCHEMA = 1
_KINDS: dict[str, type] = {
    "tvm": str, "tvm_q4": str, "device": str, "arch": str, "signature": str, "rule": str,
    "params": dict, "times_us": list, "checked": bool, "date": str,
}  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One measured candidate of one layer signature.

    Parameters
    ----------
    arch, signature, rule : str
    params : dict
        The rule's parameters.
    time_us : float
        Median of all samples, in microseconds.
    checked : bool
        Whether the candidate was found bit-exact.
    """

    arch: str
    signature: str
    rule: str
    params: dict[str, Any]
    time_us: float
    checked: bool


def read_log(path: str | Path) -> Iterator[Record]:
    """Records of one log; lines that are no records are reported with their number and skipped.

    Raises
    ------
    InputError
        If the file cannot be read, or a line is of another schema version.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        msg = f"tuning log '{path}' cannot be read: {reason}; give a file of JSON lines"
        raise InputError(msg) from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            record = _parse(line, f"{path}:{number}")
            if record is not None:
                yield record


def _parse(line: str, where: str) -> Record | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        logger.warning("%s: skipped, not JSON (%s)", where, error)
        return None
    if not isinstance(entry, dict) or "schema" not in entry:
        logger.warning("%s: skipped, no tuning record", where)
        return None
    if entry["schema"] != SCHEMA:
        msg = f"{where}: tuning record of schema {entry['schema']!r}, this version reads {SCHEMA}"
        raise InputError(f"{msg}; tune again with it")
    wrong = [k for k, kind in _KINDS.items() if not isinstance(entry.get(k), kind)]
    times = entry.get("times_us")
    if not wrong and not (times and all(isinstance(t, (int, float)) and t > 0 for t in times)):
        wrong = ["times_us"]
    if wrong:
        logger.warning("%s: skipped, %s missing or of the wrong type", where, ", ".join(wrong))
        return None
    return Record(
        entry["arch"], entry["signature"], entry["rule"], entry["params"],
        statistics.median(times), entry["checked"],
    )  # fmt: skip


def best_records(paths: Iterable[str | Path], arch: str) -> dict[str, Record]:
    """The fastest checked record of each signature for `arch`, over all logs."""
    best: dict[str, Record] = {}
    for path in paths:
        for record in read_log(path):
            if not record.checked or record.arch != arch:
                continue
            known = best.get(record.signature)
            if known is None or record.time_us < known.time_us:
                best[record.signature] = record
    return best
