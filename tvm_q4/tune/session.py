"""One tuning run: batches of candidates, until a limit is reached; then the best ones once more."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tvm_q4.errors import CheckFailed, TargetError
from tvm_q4.progress import ProgressBar
from tvm_q4.schedules.rule import Params
from tvm_q4.tune.builder import Builder
from tvm_q4.tune.case import CaseMaker
from tvm_q4.tune.cost_model import CostModel
from tvm_q4.tune.features import distance, rows
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.measurer import Measurer
from tvm_q4.tune.scheduler import next_search
from tvm_q4.tune.search import Search, SearchOptions
from tvm_q4.tune.task import Task, params_key
from tvm_q4.tune.time_job import Sample, Timing
from tvm_q4.tune.workers import Failure
from tvm_q4.tuning_logs.records import Record, best_of
from tvm_q4.tuning_logs.writing import append, entry

CONFIRMED = 3
"""How many of a task's best candidates are measured again beside its start."""

_CONFIRM_S = 5.0
"""Seconds that measuring a task's best again is taken to last, before one was timed."""

_CONFIRM_ROUNDS = 3
"""How often, at most, a task's best are measured again because another one came out ahead."""

_SIMILAR = 2
"""Signatures whose best parameters are tried."""

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
    confirm: Timing = field(default_factory=lambda: Timing(rounds=15, burst_ms=4.0, limit_s=120.0))


@dataclass
class Session:
    """The state of a run.

    Attributes
    ----------
    tasks : list of Task
    cases : CaseMaker
    builder, measurer
        What builds candidates, and what runs them.
    log : Path
    folder : Path
        For kernels and cases; removed by whoever made it.
    options : SearchOptions
    timings : Timings
    seed : int
    """

    tasks: Sequence[Task]
    cases: CaseMaker
    builder: Builder
    measurer: Measurer
    log: Path
    folder: Path
    options: SearchOptions = field(default_factory=SearchOptions)
    timings: Timings = field(default_factory=Timings)
    seed: int = 0

    def __post_init__(self) -> None:
        self.searches = [Search(task, rows(task), self.options) for task in self.tasks]
        self._models: dict[str, CostModel] = {}
        self._rng = np.random.default_rng(self.seed)
        self._kept: dict[Task, dict[int, Kernel]] = {task: {} for task in self.tasks}
        self._fruitless = 0
        self._confirm_s = _CONFIRM_S

    def resume(self, records: Sequence[Record]) -> None:
        """Take what a log holds: measured candidates are not measured again."""
        for search in self.searches:
            mine = [r for r in records if r.arch == search.task.arch]
            _take(search, [r for r in mine if r.signature == search.task.signature])
            search.seeds = _seeds(search.task, mine)
        for rule in {s.task.rule.name for s in self.searches}:
            self._learn(rule)

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
            return self.options.batch
        left = budget.trials - sum(s.trials for s in self.searches)
        fresh = sum(s.start_us is None for s in self.searches)
        return min(self.options.batch, left if fresh == 0 else max(1, left // fresh), left)

    def _reserved(self) -> float:
        """Seconds that confirming what is not confirmed will take."""
        pending = sum(s.best is not None and s.confirmed != s.best for s in self.searches)
        return pending * self._confirm_s

    def _batch(self, search: Search, count: int) -> int:
        """Measure a batch and record it; returns the number of candidates."""
        task = search.task
        model = self._models.get(task.rule.name)
        scores = model.predict(search.rows) if model is not None else None
        chosen = search.propose(count, scores, self._rng)
        kernels = self._kernels(task, [task.start, *chosen])
        start = kernels[task.start]
        if isinstance(start, Failure):
            raise CheckFailed(f"layer {task.name!r}: its default kernel fails: {start.reason}")
        built = {i: k for i in chosen if isinstance(k := kernels[i], Kernel)}
        groups = [[start] if i == task.start else [start, k] for i, k in built.items()]
        results = dict(zip(built, self._measure(task, groups, self.timings.search), strict=True))
        failures = {i: k for i, k in kernels.items() if isinstance(k, Failure)}
        failures |= {i: r for i, r in results.items() if isinstance(r, Failure)}
        samples = {i: r for i, r in results.items() if not isinstance(r, Failure)}
        self._check_start(task, samples.values())
        self._record(task, [(i, r[-1], r[0] if len(r) > 1 else None) for i, r in samples.items()])
        self._observe(search, chosen, samples)
        self._report(task, failures, fruitful=bool(samples))
        self._keep(search)
        self._learn(task.rule.name)
        return len(chosen)

    def _observe(
        self, search: Search, chosen: Iterable[int], samples: dict[int, list[Sample]]
    ) -> None:
        starts = [min(group[0].times_us) for group in samples.values()]
        if starts:
            known = [search.start_us] if search.start_us is not None else []
            search.start_us = min([*known, *starts])
        relative: dict[int, float | None] = dict.fromkeys(chosen)
        for i, group in samples.items():
            if group[-1].exact:
                relative[i] = min(group[-1].times_us) / min(group[0].times_us)
        search.observe(relative.items())

    def _measure(
        self, task: Task, groups: Sequence[Sequence[Kernel]], timing: Timing
    ) -> list[list[Sample] | Failure]:
        """Measure groups; what failed is tried once more, since devices die."""
        case_file = self._case_file(task)
        results = self.measurer.measure(case_file, groups, timing)
        failed = [i for i, r in enumerate(results) if isinstance(r, Failure)]
        if failed:
            again = self.measurer.measure(case_file, [groups[i] for i in failed], timing)
            for i, result in zip(failed, again, strict=True):
                results[i] = result
        return results

    def _kernels(self, task: Task, indices: Sequence[int]) -> dict[int, Kernel | Failure]:
        """Kernels of settings; those that are kept are not built again."""
        kept = self._kept[task]
        missing = [i for i in dict.fromkeys(indices) if i not in kept]
        built = self.builder.build(task, [task.space[i] for i in missing]) if missing else []
        for i, kernel in zip(missing, built, strict=True):
            if isinstance(kernel, Kernel):
                kept[i] = kernel
        failures = {i: k for i, k in zip(missing, built, strict=True) if isinstance(k, Failure)}
        return {i: failures[i] if i in failures else kept[i] for i in dict.fromkeys(indices)}

    def _keep(self, search: Search) -> None:
        """Discard kernels but the start's and the best ones'."""
        kept = self._kept[search.task]
        good = {search.task.start, *_best(search)}
        for i in [i for i in kept if i not in good]:
            kept.pop(i).discard()

    def _case_file(self, task: Task) -> Path:
        path = self.folder / f"case{task.index}.npz"
        if not path.exists():
            self.cases.make(task.layer).save(path)
        return path

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
                    facts=self.measurer.facts,
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

    def _learn(self, rule: str) -> None:
        """Fit the rule's model to all measurements of its tasks."""
        model = self._models.setdefault(rule, CostModel(self.seed))
        mine = [s for s in self.searches if s.task.rule.name == rule]
        pairs = [(s.rows[i], value) for s in mine for i, value in s.relative.items()]
        model.fit([row for row, _ in pairs], [value for _, value in pairs])

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
        kernels = self._kernels(task, [task.start, *_best(search)])
        usable = {i: k for i, k in kernels.items() if isinstance(k, Kernel)}
        (result,) = self._measure(task, [list(usable.values())], self.timings.confirm)
        if isinstance(result, Failure) or task.start not in usable:
            logger.warning("%s: its best candidates could not be measured again", task.name)
            return set()
        self._check_start(task, [result])
        samples = dict(zip(usable, result, strict=True))
        start = samples[task.start]
        self._record(task, [(i, s, start) for i, s in samples.items()], again=True)
        search.start_us = min(start.times_us)
        exact = {i: min(s.times_us) / search.start_us for i, s in samples.items() if s.exact}
        search.relative |= exact
        for i in samples.keys() - exact.keys():
            search.relative.pop(i, None)
            search.failed.add(i)
        return set(exact)


def describe(search: Search) -> str:
    """A task's state in one line, for the progress bar."""
    task = search.task
    on_gpu = task.target.kind.name == "cuda"
    predicted = f", predicted {min(task.costs):.1f} us" if on_gpu else ""
    if search.best_us is None or search.start_us is None:
        return f"{task.name}{predicted}"
    gain = search.start_us / search.best_us
    best, start = search.best_us, search.start_us
    return f"{task.name}: best {best:.1f} us, start {start:.1f} us ({gain:.2f}x){predicted}"


def _best(search: Search) -> list[int]:
    ordered = sorted(search.relative, key=search.relative.__getitem__)
    return ordered[:CONFIRMED]


def _take(search: Search, records: Sequence[Record]) -> None:
    """Measured candidates of a log, relative to the start that was timed with them."""
    index = {params_key(params): i for i, params in enumerate(search.task.space)}
    best: dict[int, Record] = {}
    wrong: set[int] = set()
    for record in records:
        i = index.get(params_key(record.params))
        if i is None or record.rule != search.task.rule.name:
            continue
        if not record.checked:
            wrong.add(i)
        elif i not in best or record.rank < best[i].rank:
            best[i] = record
    start = best.get(search.task.start)
    if start is None:
        return
    search.failed = wrong - best.keys()
    search.start_us = start.least_us
    for i, record in best.items():
        relative = record.least_us / (record.start_us or start.least_us)
        search.observe([(i, 1.0 if i == search.task.start else relative)])
    search.gains.clear()
    top = best_of(best.values())[search.task.signature]
    if top.again:
        search.settle(index[params_key(top.params)])


def _seeds(task: Task, records: Iterable[Record]) -> list[int]:
    """Settings that did best for the most similar signatures of the same rule."""
    best = best_of(r for r in records if r.rule == task.rule.name)
    near = sorted(
        (signature for signature in best if signature != task.signature),
        key=lambda signature: distance(task.signature, signature),
    )
    wanted: list[Params] = [best[signature].params for signature in near[:_SIMILAR]]
    return [task.space.index(params) for params in wanted if params in task.space]


def summary(search: Search) -> dict[str, Any]:
    """What a run found out about a task, as JSON."""
    task, best = search.task, search.best
    return {
        "index": task.index,
        "layers": list(task.layers),
        "signature": task.signature,
        "arch": task.arch,
        "rule": task.rule.name,
        "settings": len(task.space),
        "trials": search.trials,
        "failed": len(search.failed),
        "predicted_us": min(task.costs) if task.target.kind.name == "cuda" else None,
        "start_us": search.start_us,
        "start_params": task.space[task.start],
        "best_us": search.best_us,
        "best_params": task.space[best] if best is not None else None,
        "confirmed": best is not None and search.confirmed == best,
    }
