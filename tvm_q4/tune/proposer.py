"""Proposing candidates: the searches of a run with what was learned from all measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_q4.tune.cost_model import CostModel
from tvm_q4.tune.features import rows
from tvm_q4.tune.resume import Bests, bests_of, resume, similar
from tvm_q4.tune.search import Search, SearchOptions
from tvm_q4.tune.task import Task
from tvm_q4.tuning_logs.records import Record


class Proposer:
    """The searches of several tasks, and a cost model for each rule.

    Parameters
    ----------
    tasks : sequence of Task
    options : SearchOptions
    seed : int
    """

    def __init__(self, tasks: Sequence[Task], options: SearchOptions, seed: int = 0) -> None:
        self.searches = [Search(task, rows(task), options) for task in tasks]
        self._models = {task.rule.name: CostModel(seed) for task in tasks}
        self._rng = np.random.default_rng(seed)
        self._bests: Bests = {}

    def resume(self, records: Sequence[Record]) -> None:
        """Take what a log holds: measured candidates are not proposed again."""
        self._bests = bests_of(records)
        for search in self.searches:
            resume(search, records)
        for rule in self._models:
            self._fit(rule)

    def propose(self, search: Search, count: int) -> list[int]:
        """Settings of a task to measure next."""
        scores = self._models[search.task.rule.name].predict(search.rows)
        if search.start_us is None:
            search.seeds = similar(search.task, self._bests)
        return search.propose(count, scores, self._rng)

    def learn(self, search: Search) -> None:
        """Learn from a search that has observed a batch."""
        task = search.task
        self._fit(task.rule.name)
        if search.best is not None:
            known = self._bests.setdefault((task.arch, task.rule.name), {})
            known[task.signature] = task.space[search.best]

    def _fit(self, rule: str) -> None:
        """Fit the rule's model to all measurements of its tasks."""
        mine = [s for s in self.searches if s.task.rule.name == rule]
        pairs = [(s.rows[i], value) for s in mine for i, value in s.relative.items()]
        self._models[rule].fit([row for row, _ in pairs], [value for _, value in pairs])
