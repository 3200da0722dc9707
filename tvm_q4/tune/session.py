"""One tuning run: batches of candidates, until a limit is reached; then the best ones once more."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tvm_q4.errors import CheckFailed, TargetError
from tvm_q4.progress import ProgressBar
from tvm_q4.tune.candidates import Candidates
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.proposer import Proposer
from tvm_q4.tune.scheduler import next_search
from tvm_q4.tune.search import Search, SearchOptions
from tvm_q4.tune.summary import describe
from tvm_q4.tune.task import Task, params_key
from tvm_q4.tune.time_job import Sample, Timing, joined
from tvm_q4.tune.workers import Failure
from tvm_q4.tuning_logs.records import Record
from tvm_q4.tuning_logs.writing import append, entry

CONFIRMED = 3
"""How many of a task's best candidates are measured again beside its start."""

PLACEMENTS = 4
"""How often that is done with inputs and weights at new places in memory: where they lie can change
a kernel's time by half, and which of two is faster."""

_CONFIRM_S = 2.0
"""Seconds that measuring a task's best again is taken to last, before one was timed."""

_CONFIRM_ROUNDS = 3
"""How often, at most, a task's best are measured again because another one came out ahead."""

_FRUITLESS = 3
"""Batches in a row without a single time, after which a run gives up."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """When a run ends.

    Attributes
    ----------
    trials : int, optional
        Candidates of all tasks together, those that the log holds included.
    seconds : float, optional
        Time of the run, with measuring the best ones again.
    """

    trials: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Timings:
    """How candidates are timed in the search, and how the best of a task are timed again."""

    search: Timing = field(default_factory=Timing)
    confirm: Timing = field(default_factory=lambda: Timing(rounds=8, burst_ms=2.0))


class Session:
    """The state of a run.

    Parameters
    ----------
    tasks : sequence of Task
    candidates : Candidates
        What builds and measures them.
    log : Path
    options : SearchOptions
    timings : Timings
    seed : int
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        candidates: Candidates,
        log: Path,
        options: SearchOptions | None = None,
        timings: Timings | None = None,
        seed: int = 0,
    ) -> None:
        self.tasks, self.candidates, self.log = tasks, candidates, log
        self._options, self._timings = options or SearchOptions(), timings or Timings()
        self._proposer = Proposer(tasks, self._options, seed)
        self.searches = self._proposer.searches
        self._fruitless = 0
        self._confirm_s = _CONFIRM_S

    @property
    def trials(self) -> int:
        """Candidates of all tasks that were measured or failed, those from the log included."""
        return sum(search.trials for search in self.searches)

    def resume(self, records: Sequence[Record]) -> None:
        """Take what a log holds: measured candidates are not measured again."""
        self._proposer.resume(records)

    def run(self, budget: Budget, bar: ProgressBar | None = None) -> None:
        """Search until `budget` is spent or every task is finished, then confirm the best.

        Raises
        ------
        TargetError
            If several batches in a row give no time at all.
        CheckFailed
            If a start candidate cannot be built, or is not exact.
        """
        bar = bar or ProgressBar("tune", 1, show=False)
        end = None if budget.seconds is None else time.monotonic() + budget.seconds
        while (search := next_search(self.searches)) is not None:
            count = self._count(budget)
            if count < 1 or (end is not None and time.monotonic() + self._reserved() > end):
                break
            bar.step(describe(search))
            bar.advance(self._batch(search, count))
        for search in self.searches:
            if search.best is not None and search.confirmed != search.best:
                bar.step(f"{describe(search)}, measuring the best again")
                self.confirm(search)

    def _count(self, budget: Budget) -> int:
        """Candidates of the next batch: few where the budget is small for so many tasks."""
        if budget.trials is None:
            return self._options.batch
        left = budget.trials - self.trials
        fresh = sum(s.start_us is None and not s.finished for s in self.searches)
        return min(self._options.batch, max(1, left // fresh) if fresh else left, left)

    def _reserved(self) -> float:
        """Seconds that confirming what is not confirmed will take."""
        pending = sum(s.best is not None and s.confirmed != s.best for s in self.searches)
        return pending * self._confirm_s

    def _batch(self, search: Search, count: int) -> int:
        """Measure a batch and record it; returns the number of candidates."""
        task = search.task
        chosen = self._proposer.propose(search, count)
        kernels = self.candidates.kernels(task, [task.start, *chosen])
        start = kernels[task.start]
        if isinstance(start, Failure):
            raise CheckFailed(f"layer {task.name!r}: its default kernel fails: {start.reason}")
        built = {i: k for i in chosen if isinstance(k := kernels[i], Kernel)}
        groups = [[start] if i == task.start else [start, k] for i, k in built.items()]
        measured = self.candidates.measure(task, groups, self._timings.search)
        results = dict(zip(built, measured, strict=True))
        failures = {i: k for i, k in kernels.items() if isinstance(k, Failure)}
        failures |= {i: r for i, r in results.items() if isinstance(r, Failure)}
        samples = {i: r for i, r in results.items() if not isinstance(r, Failure)}
        self._check_start(task, samples.values())
        self._record(task, [(i, r[-1], r[0] if len(r) > 1 else None) for i, r in samples.items()])
        _observe(search, chosen, samples)
        self._report(task, failures, fruitful=bool(samples))
        self.candidates.keep(task, {task.start, *_best(search)})
        self._proposer.learn(search)
        return len(chosen)

    def _record(
        self,
        task: Task,
        measured: Sequence[tuple[int, Sample, Sample | None]],
        *,
        again: bool = False,
    ) -> None:
        """Append candidates to the log at once: setting, its sample, that of the start."""
        append(
            self.log,
            [
                entry(
                    arch=task.arch,
                    signature=task.signature,
                    rule=task.rule.name,
                    params=task.space[i],
                    times_us=sample.times_us,
                    checked=sample.exact,
                    facts=self.candidates.measurer.facts,
                    start_us=start.times_us if start is not None else (),
                    again=again,
                )
                for i, sample, start in measured
            ],
        )

    def _check_start(self, task: Task, groups: Iterable[list[Sample]]) -> None:
        """A wrong start is a fault of the rule, not of a candidate: say so at once."""
        if not all(group[0].exact for group in groups):
            msg = (
                f"layer {task.name!r}: {task.rule.name} with its predicted parameters "
                f"{params_key(task.space[task.start])} is not bit-exact on this device; report this"
            )
            raise CheckFailed(msg)

    def _report(self, task: Task, failures: dict[int, Failure], *, fruitful: bool) -> None:
        for i, failure in failures.items():
            logger.info("%s %s: %s", task.name, params_key(task.space[i]), failure.reason)
        self._fruitless = 0 if fruitful else self._fruitless + 1
        if self._fruitless >= _FRUITLESS and failures:
            reason = next(iter(failures.values())).reason
            msg = f"{_FRUITLESS} batches in a row could not be measured, last {task.name!r}"
            raise TargetError(f"{msg}: {reason}; what was measured before is in '{self.log}'")

    def confirm(self, search: Search) -> None:
        """Measure a task's best candidates again, in turn with its start, until the best stays."""
        begin = time.monotonic()
        again: set[int] = set()
        for _ in range(_CONFIRM_ROUNDS):
            measured = self._again(search)
            again |= measured
            if not measured or search.best in again:
                break
        if again:
            search.settle(min(again, key=search.relative.__getitem__))
        self._confirm_s = time.monotonic() - begin

    def _again(self, search: Search) -> set[int]:
        """One group of a task's start and its best candidates; returns those that hold."""
        task = search.task
        kernels = self.candidates.kernels(task, [task.start, *_best(search)])
        usable = {i: k for i, k in kernels.items() if isinstance(k, Kernel)}
        group = list(usable.values())
        results = self.candidates.measure(task, [group] * PLACEMENTS, self._timings.confirm)
        placed = [r for r in results if not isinstance(r, Failure)]
        if not placed or task.start not in usable:
            logger.warning("%s: its best candidates could not be measured again", task.name)
            return set()
        result = [joined(samples) for samples in zip(*placed, strict=True)]
        self._check_start(task, [result])
        samples = dict(zip(usable, result, strict=True))
        start = samples[task.start]
        self._record(task, [(i, s, start) for i, s in samples.items()], again=True)
        search.start_us = start.low_us
        exact = {i: s.low_us / search.start_us for i, s in samples.items() if s.exact}
        search.relative |= exact
        for i in samples.keys() - exact.keys():
            search.relative.pop(i, None)
            search.failed.add(i)
        return set(exact)


def _observe(search: Search, chosen: Iterable[int], samples: dict[int, list[Sample]]) -> None:
    """Hand a batch's times to the search; a candidate without one, or with wrong bits, failed."""
    starts = [group[0].low_us for group in samples.values()]
    if starts:
        known = [search.start_us] if search.start_us is not None else []
        search.start_us = min([*known, *starts])
    relative: dict[int, float | None] = dict.fromkeys(chosen)
    for i, group in samples.items():
        if group[-1].exact:
            relative[i] = group[-1].low_us / group[0].low_us
    search.observe(relative.items())


def _best(search: Search) -> list[int]:
    return sorted(search.relative, key=search.relative.__getitem__)[:CONFIRMED]
