"""Measuring several things in turn, so that their ratios survive a machine whose speed drifts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ratio:
    """Ratio of two things' measurements, round by round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Median and range, as tables print it."""
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


def in_turn(turns: Mapping[str, Callable[[], T]], rounds: int) -> Iterator[tuple[str, T]]:
    """Call the functions in turn, A B, B A, A B, ..., `rounds` times.

    Parameters
    ----------
    turns : mapping of str to callable
        Functions of no arguments.
    rounds : int
        Calls of each function.

    Yields
    ------
    (str, T)
        Name of a function and what its call returned.
    """
    names = list(turns)
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            yield name, turns[name]()


def ratio_by_round(ours: Sequence[float], other: Sequence[float]) -> Ratio:
    """Ratio ours / other of two series, round by round.

    Parameters
    ----------
    ours, other : sequence of float
        One value a round, of the same rounds.
    """
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
