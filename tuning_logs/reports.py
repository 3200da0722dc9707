"""What tuning logs hold, for people: the best record of each signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvm_q4.tuning_logs.records import Record, best_of, read_log


def best_rows(path: str | Path) -> list[dict[str, Any]]:
    """The best checked record of each arch and signature, as JSON, in the order of the log.

    Returns
    -------
    list of dict
        ``arch``, ``signature``, ``rule``, ``params``, ``time_us`` (median), ``low_us``,
        ``again`` (whether it was measured once more because it looked best), ``device``, ``date``
        and ``records`` (how many there are of the signature).

    Raises
    ------
    InputError
        If the log cannot be read, or holds records of another schema version only.
    """
    by_arch: dict[str, list[Record]] = {}
    for record in read_log(path):
        by_arch.setdefault(record.arch, []).append(record)
    rows = []
    for arch, records in by_arch.items():
        counts: dict[str, int] = {}
        for record in records:
            counts[record.signature] = counts.get(record.signature, 0) + 1
        rows += [_row(arch, best, counts) for best in best_of(records).values()]
    return rows


def _row(arch: str, best: Record, counts: dict[str, int]) -> dict[str, Any]:
    keys = ("signature", "rule", "params", "time_us", "low_us", "again", "device", "date")
    values = {key: getattr(best, key) for key in keys}
    return {"arch": arch, **values, "records": counts[best.signature]}
