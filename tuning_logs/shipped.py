"""Logs that come with the package, which are named without a path: ``--tuning-log emeraldrapids``.

A file of that name in the working folder goes first, as a path does everywhere.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
_SUFFIX = ".jsonl"


def shipped_logs() -> list[str]:
    """Names of the logs that come with the package: a CPU's LLVM name, or ``sm_XX``."""
    return sorted(path.stem for path in FOLDER.glob(f"*{_SUFFIX}"))


def find_log(log: str | Path) -> Path:
    """The file that a log's path or name stands for; a path as it is where nothing is found."""
    path = Path(log)
    if path.exists() or path.name != str(log) or str(log) not in shipped_logs():
        return path
    return FOLDER / f"{log}{_SUFFIX}"
