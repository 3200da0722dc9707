"""A progress bar on standard error, for work that a user waits for at a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

logger = logging.getLogger(__name__)


class ProgressBar:
    """Context that shows finished steps of `total`; silent where standard error is no terminal.

    Parameters
    ----------
    title : str
        What is being done.
    total : int
        Number of steps.
    show : bool, optional
        Show it or not, whatever standard error is.
    """

    def __init__(self, title: str, total: int, show: bool | None = None) -> None:
        self._show = sys.stderr.isatty() if show is None else show
        self._title, self._total = title, total
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressBar:
        if self._show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeElapsedColumn as Elapsed

            text = TextColumn("{task.description}")
            columns = (text, BarColumn(), MofNCompleteColumn(), Elapsed())
            console = Console(stderr=True, force_terminal=True)
            self._progress = Progress(*columns, console=console, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, name: str) -> None:
        """Say which step begins."""
        logger.info("%s: %s", self._title, name)
        if self._progress is not None:
            self._progress.update(self._task, description=f"{self._title}: {name}")

    def advance(self, count: int = 1) -> None:
        """Count finished steps."""
        if self._progress is not None:
            self._progress.advance(self._task, count)
