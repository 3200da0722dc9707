"""Time several functions in turn, so that their ratios survive a machine whose speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tvm_q4.turns import Ratio, in_turn, ratio_by_round

__all__ = ["MIN_CALLS", "Ratio", "Round", "median_ms", "ratio", "time_in_turn"]

MIN_CALLS = 5
"""Counted calls of one function in one round, at least."""


@dataclass(frozen=True)
class Round:
    """Medians over one function's calls in one round, in milliseconds."""

    wall_ms: float
    cpu_ms: float


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
    turns = {name: partial(_turn, call, counts[name]) for name, call in calls.items()}
    for name, result in in_turn(turns, rounds):
        results[name].append(result)
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
    return ratio_by_round([getattr(r, clock) for r in ours], [getattr(r, clock) for r in peer])


def median_ms(rounds: list[Round], clock: str = "wall_ms") -> float:
    """Median of a function's rounds, in milliseconds."""
    return statistics.median(getattr(r, clock) for r in rounds)
