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

Candidates are compared by the lower quartile of their samples: other processes add time to some of
them, and a moment of a higher clock takes time off a few (`low_us`). Reports give the median.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
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
_SINGLE = 1.02
"""What a candidate's time is multiplied by for comparisons unless it was measured again: the best
of many single measurements is as much a lucky one as a good one."""

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
    low_us : float, optional
        Lower quartile of all samples; `time_us` where not given.
    start_us : float, optional
        Lower quartile of the start candidate's samples, where those were taken in turn with these.
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
    low_us: float = math.nan
    start_us: float | None = None
    again: bool = False
    device: str = ""
    date: str = ""
    threads: int | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.low_us):
            object.__setattr__(self, "low_us", self.time_us)

    def rank(self, start_us: float | None) -> float:
        """Sorts records of one signature, the best first: microseconds, roughly.

        Parameters
        ----------
        start_us : float, optional
            What the start candidate takes (see `level`). What was measured in turn with it is
            compared by the ratio, which a machine whose speed drifts does not change.
        """
        us = self.low_us
        if self.start_us is not None and start_us is not None:
            us *= start_us / self.start_us
        return us if self.again else us * _SINGLE


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
        float(statistics.median(times)), entry["checked"], low_us(times),
        low_us(entry["start_us"]) if "start_us" in entry else None,
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
    """The best checked record of each signature for `arch`, over all logs; see `best_of`."""
    records = (record for path in paths for record in read_log(path) if record.arch == arch)
    return best_of(records)


def best_of(records: Iterable[Record]) -> dict[str, Record]:
    """The best checked record of each signature (see `Record.rank`), records being of one arch."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.checked:
            groups.setdefault(record.signature, []).append(record)
    return {signature: best(group) for signature, group in groups.items()}


def best(records: Sequence[Record]) -> Record:
    """The best of some records of one signature.

    Single measurements of what was measured again do not count.
    """
    start_us = level(records)
    sure = {_key(r) for r in records if r.again}
    counted = (r for r in records if r.again or _key(r) not in sure)
    return min(counted, key=lambda r: r.rank(start_us))


def _key(record: Record) -> str:
    return json.dumps([record.rule, record.params], sort_keys=True)


def level(records: Iterable[Record]) -> float | None:
    """Median microseconds of the start candidate among records of one signature."""
    starts = [r.start_us for r in records if r.start_us is not None]
    return statistics.median(starts) if starts else None


def low_us(times: Sequence[float]) -> float:
    """Lower quartile of samples: the one that a quarter of them, rounded down, are below."""
    return float(sorted(times)[len(times) // 4])
