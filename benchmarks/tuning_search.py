"""Our search of one layer as it runs, and the whole space measured once for random search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvm_q4.progress import ProgressBar
from tvm_q4.tune.candidates import Candidates
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.search import Search, SearchOptions
from tvm_q4.tune.session import Budget, Session
from tvm_q4.tune.task import Task
from tvm_q4.tune.time_job import Sample, Timing
from tvm_q4.tune.workers import Failure

_BATCH = SearchOptions().batch


class _Clock(ProgressBar):
    """Takes down, after each batch, what a search tried and when."""

    def __init__(self, search: Search) -> None:
        super().__init__("tuning", 1, show=False)
        self.search = search
        self.begin = time.monotonic()
        self.curve: list[list[Any]] = []
        self._seen: set[int] = set()

    def advance(self, count: int = 1) -> None:
        """Take down the settings of a finished batch: seconds, setting, relative time."""
        seconds = time.monotonic() - self.begin
        tried = [*self.search.relative, *sorted(self.search.failed)]
        for i in [i for i in tried if i not in self._seen]:
            self._seen.add(i)
            self.curve.append([seconds, i, self.search.relative.get(i)])


def run_ours(
    task: Task, candidates: Candidates, log: Path, trials: int, seed: int
) -> dict[str, Any]:
    """Our search with a budget of trials, as `tvm-q4 tune` runs it for a layer alone.

    Returns
    -------
    dict
        ``curve`` ([seconds, setting, time relative to the start or None] for each trial), ``best``
        (a setting, measured again), ``seconds`` (with measuring the best again), ``start``.
    """
    options = SearchOptions(early_stop=max(trials, 1))  # the budget ends it, nothing else
    session = Session([task], candidates, log, options, seed=seed)
    clock = _Clock(session.searches[0])
    session.run(Budget(trials=trials), clock)
    best = session.searches[0].best
    return {
        "start": task.start,
        "best": task.start if best is None else best,
        "seconds": time.monotonic() - clock.begin,
        "curve": clock.curve,
    }


def measure_space(
    task: Task, candidates: Candidates, tried: Sequence[int], seconds: float, seed: int
) -> dict[str, Any]:
    """Every setting once, in turn with the start, as many as `seconds` allow.

    Those that our search tried come first, the others in random order. What random search would
    have found is then computed from the longest beginning of the random order that is measured.

    Returns
    -------
    dict
        ``order`` (that beginning), ``relative`` (by setting; None for one that failed),
        ``settings`` (of the space), ``seconds_per_trial``.
    """
    drawn = np.random.default_rng(seed).permutation(len(task.space)).tolist()
    left = [*tried, *(i for i in drawn if i not in set(tried))]
    relative: dict[int, float | None] = {}
    begin = time.monotonic()
    while left and (len(relative) < len(tried) or time.monotonic() - begin < seconds):
        batch, left = left[:_BATCH], left[_BATCH:]
        relative |= _relative(task, candidates, batch)
    spent = time.monotonic() - begin
    known = next((k for k, i in enumerate(drawn) if i not in relative), len(drawn))
    return {
        "settings": len(task.space),
        "order": drawn[:known],
        "relative": {str(i): value for i, value in relative.items()},
        "seconds_per_trial": spent / len(relative),
    }


def _relative(task: Task, candidates: Candidates, batch: Sequence[int]) -> dict[int, float | None]:
    """Times of settings over that of the start, built and measured as a search does it."""
    kernels = candidates.kernels(task, [task.start, *batch])
    start = kernels[task.start]
    assert isinstance(start, Kernel), start
    built = {i: k for i in batch if isinstance(k := kernels[i], Kernel)}
    groups = [[start, k] for k in built.values()]
    results = dict(zip(built, candidates.measure(task, groups, Timing()), strict=True))
    candidates.keep(task, {task.start})
    return {i: _ratio(results.get(i)) for i in batch}


def _ratio(result: list[Sample] | Failure | None) -> float | None:
    if result is None or isinstance(result, Failure) or not result[1].exact:
        return None
    return result[1].low_us / result[0].low_us
