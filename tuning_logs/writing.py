"""Writing tuning logs: appending under a lock, and merging."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tvm_q4 import __version__
from tvm_q4.errors import InputError
from tvm_q4.tuning_logs.records import SCHEMA, read_lines

LOCK_LIMIT_S = 60.0
_POLL_S = 0.05


def entry(
    *,
    arch: str,
    signature: str,
    rule: str,
    params: Mapping[str, Any],
    times_us: Sequence[float],
    checked: bool,
    facts: Mapping[str, Any],
    start_us: Sequence[float] = (),
    again: bool = False,
) -> dict[str, Any]:
    """A record as it is stored; `facts` hold ``device`` and what else a device tells of itself."""
    return {
        "schema": SCHEMA,
        "tvm": version("apache-tvm"),
        "tvm_q4": __version__,
        **facts,
        "arch": arch,
        "signature": signature,
        "rule": rule,
        "params": dict(params),
        "times_us": _rounded(times_us),
        **({"start_us": _rounded(start_us)} if start_us else {}),
        "checked": checked,
        **({"again": True} if again else {}),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _rounded(times: Sequence[float]) -> list[float]:
    return [float(f"{t:.5g}") for t in times]


def append(path: str | Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Add records to a log, which is made where it does not exist.

    They are written at once, under a lock that other tuners wait for, and are on disk when this
    returns. A line that a killed writer left unfinished is ended before.

    Raises
    ------
    InputError
        If the log cannot be written to, or stays locked.
    """
    data = "".join(json.dumps(e, allow_nan=False) + "\n" for e in entries).encode()
    if not data:
        return
    try:
        with locked(path) as descriptor:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
    except OSError as error:
        msg = f"tuning log '{path}' cannot be written: {error.strerror}; give --log another file"
        raise InputError(msg) from None


@contextmanager
def locked(path: str | Path) -> Iterator[int]:
    """Descriptor of the log, made where it does not exist, while no other tuner writes to it.

    Raises
    ------
    InputError
        If it stays locked.
    """
    end = time.monotonic() + LOCK_LIMIT_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if _lock(descriptor) and _is_at(descriptor, path):  # a merge may have replaced the file
                yield descriptor
                return
        finally:
            os.close(descriptor)
        if time.monotonic() > end:
            msg = f"tuning log '{path}' is locked by another process for {LOCK_LIMIT_S:.0f} s"
            raise InputError(f"{msg}; end it, or give --log another file")
        time.sleep(_POLL_S)


def _lock(descriptor: int) -> bool:
    """Take the lock, which ends with the descriptor, unless another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: str | Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), Path(path).stat())
    except FileNotFoundError:
        return False


def check_appendable(path: str | Path) -> None:
    """Make sure that records can be added to `path`, before any work is done.

    Raises
    ------
    InputError
        If they cannot, or what is there holds records of another schema version only.
    """
    path = Path(path)
    if not path.parent.is_dir():
        msg = f"tuning log '{path}' cannot be written: '{path.parent}' is not a folder"
        raise InputError(f"{msg}; create it first")
    if path.exists():
        if not path.is_file():
            msg = f"tuning log '{path}' is not a regular file; give --log another name"
            raise InputError(msg)
        if not os.access(path, os.R_OK | os.W_OK):
            msg = f"tuning log '{path}' cannot be read and written; give --log another file"
            raise InputError(msg)
    elif not os.access(path.parent, os.W_OK):
        msg = f"tuning log '{path}' cannot be written; give --log a writable folder"
        raise InputError(msg)


def merge_logs(sources: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Write all records of several logs to one; equal lines once, in the order of first sight.

    Parameters
    ----------
    sources : sequence of paths
    output : path
        It appears, or is replaced, only when it is complete; it may be one of `sources`.

    Returns
    -------
    dict
        ``output``, ``records``, ``duplicates`` and ``sources`` (path to number of records).

    Raises
    ------
    InputError
        If a log cannot be read, or `output` cannot be written.
    """
    if len(sources) < 1:
        raise InputError("there is no log to merge; name one at least")
    check_appendable(output)
    path = Path(output)
    try:
        existed = path.exists()
        with locked(path):
            try:
                return _merge(sources, path)
            except BaseException:
                if not existed:
                    path.unlink()
                raise
    except OSError as error:
        raise InputError(f"tuning log '{path}' cannot be written: {error.strerror}") from None


def _merge(sources: Sequence[str | Path], path: Path) -> dict[str, Any]:
    lines: dict[str, None] = {}
    counts: dict[str, int] = {}
    for source in sources:
        found = [line for line, _ in read_lines(source)]
        counts[str(source)] = len(found)
        lines |= dict.fromkeys(found)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        new = Path(folder) / path.name
        new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        new.replace(path)
    duplicates = sum(counts.values()) - len(lines)
    return {
        "output": str(path), "records": len(lines), "duplicates": duplicates, "sources": counts,
    }  # fmt: skip
