"""Tuning logs: measured records of layers, one JSON object a line.

A record stores a rule's parameters, not TVM's traces, so it survives TVM's releases. Keys:

============== ===================================================================================
``schema``     1
``tvm``        version of apache-tvm
``tvm_q4``     version of tvm-q4
``device``     its name
``arch``       a CPU's LLVM name or ``sm_XX``
``signature``  of the layer
``rule``       name of the schedule rule
``params``     its parameters
``times_us``   all samples in microseconds
``checked``    whether the outputs were those of the reference executor, bit for bit
``date``       when it was measured, ISO 8601 in UTC
``start_us``   optional: samples of the layer's start candidate, taken in turn with these
``again``      optional: true where a candidate that looked best was measured once more, longer and
               beside the other good ones
``threads``    optional: of CPU kernels
============== ===================================================================================

Other processes on a machine only ever add time, so candidates are compared by the least of their
samples, which is the one that they disturbed least. Reports give the median.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError
from tvm_q4.tuning_logs.published import is_published
from tvm_q4.tuning_logs.shipped import find_log, shipped_logs

SCHEMA = 1
_KINDS: dict[str, type] = {
    "tvm": str, "tvm_q4": str, "device": str, "arch": str, "signature": str, "rule": str,
    "params": dict, "times_us": list, "checked": bool, "date": str,
}  # fmt: skip
_MOST_REPORTS = 10

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
    least_us : float, optional
        Least of all samples; `time_us` where there is one only.
    start_us : float, optional
        Least of the start candidate's samples, where those were taken in turn with these.
    again : bool
        Whether it was measured once more because it looked best.
    device, date : str
    threads : int, optional
        Of CPU kernels, where the record says it.
    """

    arch: str
    signature: str
    rule: str
    params: dict[str, Any]
    time_us: float
    checked: bool
    least_us: float = math.nan
    start_us: float | None = None
    again: bool = False
    device: str = ""
    date: str = ""
    threads: int | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.least_us):
            object.__setattr__(self, "least_us", self.time_us)

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts records of one signature, the best first.

        What was measured again outranks what was not: the least of many single measurements is as
        much a lucky one as a good one.
        """
        return not self.again, self.least_us


def read_log(path: str | Path) -> Iterator[Record]:
    """Records of one log; lines that are no records are reported with their number and skipped.

    Parameters
    ----------
    path : str or Path
        A file, or the name of a log that comes with the package (see `shipped`).

    Raises
    ------
    InputError
        If the file cannot be read, holds records of another schema version and none of this one, or
        is a table of published times.
    """
    for _, record in read_lines(path):
        yield record


def read_lines(path: str | Path) -> Iterator[tuple[str, Record]]:
    """`read_log`, each record with the line that it stands in."""
    if is_published(path):
        msg = f"'{path}' holds published times, which no kernel can be compiled from"
        raise InputError(f"{msg}; it is for latency, compile takes logs of tune")
    try:
        data = find_log(path).read_bytes()
    except OSError as error:
        msg = f"tuning log '{path}' cannot be read: {error.strerror}; give a file of JSON lines"
        if names := shipped_logs():
            msg += f", or the name of a log that comes with tvm-q4: {', '.join(names)}"
        raise InputError(msg) from None
    found, problems, foreign = 0, 0, ""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_line(line)
        except _OtherSchemaError as error:
            foreign = foreign or f"{path}:{number}: {error}"
            problem = str(error)
        except ValueError as error:
            problem = str(error)
        else:
            found += 1
            yield line.decode().strip(), record
            continue
        problems += 1
        if problems <= _MOST_REPORTS:
            logger.warning("%s:%d: skipped, %s", path, number, problem)
    if problems > _MOST_REPORTS:
        logger.warning("%s: %d more lines skipped", path, problems - _MOST_REPORTS)
    if foreign and not found:
        raise InputError(f"{foreign}, this version reads {SCHEMA}; tune again with it")


class _OtherSchemaError(ValueError):
    """A record of another schema version."""


def parse_line(line: bytes) -> Record:
    """The record in a line.

    Raises
    ------
    ValueError
        If it is none; the message says why.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 and huge numbers too
        raise ValueError(f"not JSON ({getattr(error, 'msg', type(error).__name__)})") from None
    if not isinstance(entry, dict) or "schema" not in entry:
        raise ValueError("no tuning record")
    schema = entry["schema"]
    if isinstance(schema, bool) or schema != SCHEMA:
        raise _OtherSchemaError(f"tuning record of schema {schema!r}")
    wrong = [k for k, kind in _KINDS.items() if not isinstance(entry.get(k), kind)]
    if not wrong and not _are_times(entry["times_us"]):
        wrong = ["times_us"]
    if "start_us" in entry and not _are_times(entry["start_us"]):
        wrong.append("start_us")
    if wrong:
        raise ValueError(f"{', '.join(wrong)} missing or of the wrong type")
    times = entry["times_us"]
    return Record(
        entry["arch"], entry["signature"], entry["rule"], entry["params"],
        float(statistics.median(times)), entry["checked"], float(min(times)),
        float(min(entry["start_us"])) if "start_us" in entry else None,
        entry.get("again") is True, entry["device"], entry["date"],
        entry["threads"] if type(entry.get("threads")) is int else None,
    )  # fmt: skip


def _are_times(times: Any) -> bool:
    """Whether these are positive, finite numbers, one at least."""
    return (
        isinstance(times, list)
        and bool(times)
        and all(
            isinstance(t, (int, float)) and not isinstance(t, bool) and 0 < t < math.inf
            for t in times
        )
    )


def best_records(paths: Iterable[str | Path], arch: str) -> dict[str, Record]:
    """The best checked record of each signature for `arch`, over all logs; see `Record.rank`."""
    records = (record for path in paths for record in read_log(path) if record.arch == arch)
    return best_of(records)


def best_of(records: Iterable[Record]) -> dict[str, Record]:
    """The best checked record of each signature, records being of one arch."""
    best: dict[str, Record] = {}
    for record in records:
        known = best.get(record.signature)
        if record.checked and (known is None or record.rank < known.rank):
            best[record.signature] = record
    return best
