"""Results of a bundle, brought back into a tuning log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError
from tvm_q4.tune.bundle import FORMAT, bundle_id
from tvm_q4.tuning_logs.records import parse_line, read_lines
from tvm_q4.tuning_logs.writing import append, check_appendable, entry

logger = logging.getLogger(__name__)
_FACTS = {"device": str, "device_arch": int, "threads": int}
_MANIFEST = {
    "kind": str, "target": str, "tvm": str, "tvm_ffi": str, "tvm_q4": str, "tasks": list,
}  # fmt: skip
_TASK = {"layer": str, "arch": str, "signature": str, "rule": str, "candidates": list}
_MOST_REPORTS = 10


def import_results(results: str | Path, log: str | Path) -> dict[str, Any]:
    """Append what a bundle's ``run.py`` measured to a tuning log.

    A line is taken where it is a measurement of a candidate of the bundle whose manifest stands
    before it; what it was measured for (signature, rule, parameters) comes from there. Other lines
    are reported with their number and left out, and so is what the log holds already.

    Parameters
    ----------
    results : path
        ``results.jsonl`` of a bundle, or several of them, one behind the other.
    log : path
        Made where it does not exist.

    Returns
    -------
    dict
        ``log``, ``records`` (appended), ``inexact`` (of these, not bit-exact there), ``failed``
        (candidates that gave no time), ``duplicates`` and ``skipped`` (lines).

    Raises
    ------
    InputError
        If a file cannot be read or written, or `results` holds no bundle's results.
    """
    check_appendable(log)
    try:
        data = Path(results).read_bytes()
    except OSError as error:
        msg = f"results '{results}' cannot be read: {error.strerror}"
        raise InputError(f"{msg}; give a bundle's results.jsonl") from None
    reader = _Reader(results)
    found = list(reader.records(data))
    if not reader.manifests:
        raise InputError(f"results '{results}' are of no bundle; give a bundle's results.jsonl")
    known = {line for line, _ in read_lines(log)} if Path(log).exists() else set()
    fresh = {}
    for record in found:
        line = json.dumps(record)
        if line not in known:
            fresh[line] = record
    append(log, fresh.values())
    return {
        "log": str(log),
        "records": len(fresh),
        "inexact": sum(not record["checked"] for record in fresh.values()),
        "failed": reader.failed,
        "duplicates": len(found) - len(fresh),
        "skipped": reader.skipped,
    }


class _Reader:
    """Lines of a results file as records of a log."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self.manifests: dict[str, dict[str, Any]] = {}
        self.failed = self.skipped = 0

    def records(self, data: bytes) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(data.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                record = self._line(line)
            except ValueError as error:
                self._skip(number, str(error))
                continue
            if record is not None:
                yield record
        if self.skipped > _MOST_REPORTS:
            logger.warning("%s: %d more lines skipped", self._path, self.skipped - _MOST_REPORTS)

    def _skip(self, number: int, problem: str) -> None:
        self.skipped += 1
        if self.skipped <= _MOST_REPORTS:
            logger.warning("%s:%d: skipped, %s", self._path, number, problem)

    def _line(self, line: bytes) -> dict[str, Any] | None:
        """The record of a line; None for a manifest and for a candidate without a time."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("not JSON") from None
        if not isinstance(row, dict) or not isinstance(row.get("bundle"), str):
            raise ValueError("no result of a bundle")
        if "manifest" in row:
            self.manifests[row["bundle"]] = _checked_manifest(row["bundle"], row["manifest"])
            return None
        manifest = self.manifests.get(row["bundle"])
        if manifest is None:
            raise ValueError(f"of bundle {row['bundle']!r}, whose manifest is not here")
        task = _item(manifest["tasks"], row.get("task"), "task")
        candidate = _item(task["candidates"], row.get("candidate"), "candidate")
        if isinstance(row.get("error"), str):
            self.failed += 1
            logger.info("%s %s: %s", task["layer"], candidate["params"], row["error"])
            return None
        return _record(manifest, task, candidate, row)


def _checked_manifest(name: str, manifest: Any) -> dict[str, Any]:
    """A manifest whose digest is its bundle's id; ValueError for any other."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"the manifest is not of format {FORMAT}")
    if bundle_id(manifest) != name:
        raise ValueError(f"the manifest is not that of bundle {name!r}; it was changed")
    if _wrong(manifest, _MANIFEST) or any(
        not isinstance(task, dict) or _wrong(task, _TASK) for task in manifest["tasks"]
    ):
        raise ValueError("the manifest lacks something or holds the wrong types")
    return manifest


def _wrong(value: dict[str, Any], kinds: Mapping[str, type]) -> bool:
    return any(not isinstance(value.get(key), kind) for key, kind in kinds.items())


def _item(items: list[Any], index: Any, what: str) -> dict[str, Any]:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(items):
        raise ValueError(f"{what} {index!r} is not in the bundle")
    return dict(items[index])


def _record(
    manifest: dict[str, Any], task: dict[str, Any], candidate: dict[str, Any], row: dict[str, Any]
) -> dict[str, Any]:
    """A record of the log, checked as the log's reader will."""
    facts = {key: row[key] for key, kind in _FACTS.items() if isinstance(row.get(key), kind)}
    measured = {key: row.get(key) for key in ("times_us", "start_us", "checked", "date")}
    common = {key: task[key] for key in ("arch", "signature", "rule")}
    built = {key: manifest[key] for key in ("tvm", "tvm_q4")}
    raw = {"schema": 1, **built, **facts, **common, "params": candidate["params"], **measured}
    parse_line(json.dumps(raw).encode())  # ValueError says what is wrong
    record = entry(
        **common,
        params=candidate["params"],
        times_us=raw["times_us"],
        start_us=raw["start_us"],
        checked=raw["checked"],
        facts=facts,
        again=row.get("again") is True,
    )
    return record | built | {"date": raw["date"]}
