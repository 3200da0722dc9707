"""The search within one task: which candidates to measure next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tvm_q4.tune.task import Task

NOTABLE = 0.01
"""Least relative gain that counts as an improvement, for the early stop."""


@dataclass(frozen=True)
class SearchOptions:
    """How a task is searched.

    Attributes
    ----------
    batch : int
        Candidates proposed at a time.
    explore : float
        Share of a batch that is drawn at random.
    early_stop : int
        Candidates without an improvement after which a task is finished.
    """

    batch: int = 8
    explore: float = 0.25
    early_stop: int = 24


@dataclass
class Search:
    """The state of one task.

    Attributes
    ----------
    task : Task
    rows : ndarray
        Features of every setting.
    seeds : list of int
        Settings to measure before others, the best first; the start is always the first of all.
    relative : dict of int to float
        Times of measured settings over the time of the start.
    failed : set of int
        Settings that gave no time, or wrong results.
    start_us : float, optional
        Microseconds of the start.
    confirmed : int, optional
        The best setting, if it was measured again.
    gains : list of float
        Relative gain of each batch.
    stale : int
        Candidates since the last improvement.
    """

    task: Task
    rows: NDArray[np.float32]
    options: SearchOptions
    seeds: list[int] = field(default_factory=list)
    relative: dict[int, float] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    start_us: float | None = None
    confirmed: int | None = None
    gains: list[float] = field(default_factory=list)
    stale: int = 0

    @property
    def trials(self) -> int:
        """Candidates that were measured or failed."""
        return len(self.relative) + len(self.failed)

    @property
    def best(self) -> int | None:
        """The fastest measured setting; of equal ones, the one that was measured again."""
        if not self.relative:
            return None
        return min(self.relative, key=lambda i: (self.relative[i], i != self.confirmed))

    @property
    def best_us(self) -> float | None:
        """Microseconds of the fastest setting, at the speed at which the start was measured."""
        if self.best is None or self.start_us is None:
            return None
        return self.relative[self.best] * self.start_us

    @property
    def finished(self) -> bool:
        """Whether nothing is left, or nothing was gained for long."""
        fruitless = self.start_us is None and bool(self.failed)
        return not self.open or self.stale >= self.options.early_stop or fruitless

    @property
    def open(self) -> list[int]:
        """Settings that were not tried."""
        tried = self.relative.keys() | self.failed
        return [i for i in range(len(self.task.space)) if i not in tried]

    def propose(
        self, count: int, scores: NDArray[np.float32] | None, rng: np.random.Generator
    ) -> list[int]:
        """Settings to measure next.

        Parameters
        ----------
        count : int
        scores : ndarray, optional
            The cost model's value for each setting, lower is better; the rule's prediction decides
            where None.
        rng : numpy.random.Generator
        """
        left = self.open
        first = [self.task.start, *self.seeds] if not self.relative else self.seeds
        chosen = [i for i in dict.fromkeys(first) if i in left][:count]
        rest = [i for i in left if i not in chosen]
        missing = count - len(chosen)
        random = min(round(count * self.options.explore), missing, len(rest))
        ranking = np.asarray(self.task.costs) if scores is None else scores
        best = sorted(rest, key=lambda i: float(ranking[i]))[: missing - random]
        rest = [i for i in rest if i not in best]
        drawn = rng.permutation(rest)[:random].tolist() if rest else []
        return chosen + best + drawn

    def observe(self, results: Iterable[tuple[int, float | None]]) -> None:
        """Take measured relative times; None for a candidate that failed."""
        before = self.relative[self.best] if self.best is not None else None
        count = 0
        for index, relative in results:
            count += 1
            if relative is None:
                self.failed.add(index)
            else:
                self.relative[index] = relative
        after = self.relative[self.best] if self.best is not None else None
        if before is None or after is None:
            return
        gain = max(0.0, 1 - after / before)
        self.gains.append(gain)
        self.stale = 0 if gain >= NOTABLE else self.stale + count

    def settle(self, index: int) -> None:
        """Hold a setting that was measured again for the best; single times below it are luck."""
        self.confirmed = index
        floor = self.relative[index]
        self.relative = {i: max(value, floor) for i, value in self.relative.items()}
