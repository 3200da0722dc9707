"""Time several functions in turn, so that their ratios survive a machine whose speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MIN_CALLS = 5
"""Counted calls of one function in one round, at least."""


@dataclass(frozen=True)
class Round:
    """Medians over one function's calls in one round, in milliseconds."""

    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Ratio:
    """Ratio of two functions' times, round by round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Median and range, as tables print it."""
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float = 0.25
) -> dict[str, list[Round]]:
    """Run the functions in turn, A B, B A, A B, ..., `rounds` times.

    A turn is one call that is not counted, which brings the function's data back into the caches,
    and then calls one after another for about `seconds`, at least `MIN_CALLS`.

    Parameters
    ----------
    calls : mapping of str to callable
        Functions of no arguments.
    rounds : int
        Turns of each function.
    seconds : float
        Length of a turn.

    Returns
    -------
    dict of str to list of Round
        `rounds` entries for each function.
    """
    counts = {name: _calls_per_turn(call, seconds) for name, call in calls.items()}
    results: dict[str, list[Round]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            results[name].append(_turn(calls[name], counts[name]))
    return results


def _calls_per_turn(call: Callable[[], object], seconds: float) -> int:
    """Warm up and see how many calls fill a turn."""
    call()
    start = time.perf_counter()
    call()
    return max(MIN_CALLS, round(seconds / (time.perf_counter() - start)))


def _turn(call: Callable[[], object], count: int) -> Round:
    call()
    wall, cpu = [], []
    for _ in range(count):
        cpu_start, start = time.process_time(), time.perf_counter()
        call()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return Round(statistics.median(wall) * 1e3, statistics.median(cpu) * 1e3)


def ratio(ours: list[Round], peer: list[Round], clock: str = "wall_ms") -> Ratio:
    """Ratio ours / peer of two functions that were timed in turn; below 1 ours is faster.

    Parameters
    ----------
    ours, peer : list of Round
        From one call of `time_in_turn`.
    clock : {"wall_ms", "cpu_ms"}
        Which time.
    """
    ratios = [getattr(a, clock) / getattr(b, clock) for a, b in zip(ours, peer, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def median_ms(rounds: list[Round], clock: str = "wall_ms") -> float:
    """Median of a function's rounds, in milliseconds."""
    return statistics.median(getattr(r, clock) for r in rounds)
