"""Where times come from: tuning logs, and tables that others published."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tvm_q4.tuning_logs.published import PublishedTimes, is_published, read_published
from tvm_q4.tuning_logs.records import Record, best_of, best_records

_SHIFTS = re.compile(r"\bhigh\d+(,\d+)*")
_HALO = re.compile(r"(NHWC\d+)h[\d,]+")

logger = logging.getLogger(__name__)


def kernel_kind(signature: str) -> str:
    """What is left of a signature without what hardly changes a kernel's time.

    That are the amounts of shifts, which follow from the scales of the model that was tuned, and
    whether a residual skip lies in a tensor with a halo, which only moves its addresses.
    """
    head, arrow, outputs = _SHIFTS.sub("high", signature).rpartition(" -> ")
    body, bar, inputs = head.rpartition(" | ")
    data, *skips = inputs.split(" ")
    return body + bar + " ".join([data, *(_HALO.sub(r"\1", s) for s in skips)]) + arrow + outputs


class Sources:
    """What is known about one arch.

    Parameters
    ----------
    paths : sequence of paths
        Tuning logs and tables of published times, or names of shipped ones.
    arch : str

    Attributes
    ----------
    exact : dict of str to Record
        The best record of each signature.

    Raises
    ------
    InputError
        If a file cannot be read, or is of another version.
    """

    def __init__(self, paths: Sequence[str | Path], arch: str) -> None:
        self._arch = arch
        self._tables = [read_published(path) for path in paths if is_published(path)]
        logs = {str(p): best_records([p], arch) for p in paths if not is_published(p)}
        self.exact = best_of(record for found in logs.values() for record in found.values())
        self._log_of = {id(r): Path(p).name for p, found in logs.items() for r in found.values()}
        self._alike: dict[str, Record] = {}
        for record in sorted(self.exact.values(), key=lambda r: r.low_us):
            self._alike.setdefault(kernel_kind(record.signature), record)

    def find(self, signature: str) -> Record | None:
        """The record of a kernel, or the fastest of its kind."""
        return self.exact.get(signature) or self._alike.get(kernel_kind(signature))

    def log_of(self, record: Record) -> str:
        """File name of the log that a record of `exact` stands in."""
        return self._log_of[id(record)]

    def published(self, batch: int) -> list[PublishedTimes]:
        """The tables of the arch and of a batch; others are warned about."""
        usable = []
        for table in self._tables:
            if (table.arch, table.batch) == (self._arch, batch):
                usable.append(table)
            else:
                logger.warning(
                    "%s is of %s, batch %d; it is not used for %s, batch %d",
                    *(table.file, table.arch, table.batch, self._arch, batch),
                )
        return usable


def describe_records(
    source: str, records: Iterable[Record], sources: Sources
) -> list[dict[str, Any]]:
    """What stands behind times of one source, one entry a device, log and number of threads."""
    groups: dict[tuple[str, str, int | None], list[str]] = {}
    for record in records:
        key = record.device, sources.log_of(record), record.threads
        groups.setdefault(key, []).append(record.date)
    return [
        {"source": source, "device": device, "log": log}
        | ({} if threads is None else {"threads": threads})
        | {"from": min(dates), "to": max(dates)}
        for (device, log, threads), dates in groups.items()
    ]


def describe_published(source: str, table: PublishedTimes) -> dict[str, Any]:
    """What stands behind times of a published table."""
    return {
        "source": source,
        "device": table.device,
        "log": table.file,
        "citation": table.citation,
        "from": table.date,
        "to": table.date,
    }
