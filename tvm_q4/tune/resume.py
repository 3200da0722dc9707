"""What a tuning log holds for a task: its measured candidates, and those of similar layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tvm_q4.schedules.rule import Params
from tvm_q4.tune.features import distance
from tvm_q4.tune.search import Search
from tvm_q4.tune.task import Task, params_key
from tvm_q4.tuning_logs.records import Record, best, best_of

_SIMILAR = 2
"""Signatures whose best parameters are tried."""


Bests = dict[tuple[str, str], dict[str, Params]]
"""By arch and rule: the best known parameters of each signature."""


def resume(search: Search, records: Sequence[Record]) -> None:
    """Take measured candidates, so that they are not measured again."""
    task = search.task
    _take(search, [r for r in records if (r.arch, r.signature) == (task.arch, task.signature)])


def bests_of(records: Iterable[Record]) -> Bests:
    """The best parameters of every signature in a log."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.arch, record.rule), []).append(record)
    return {
        key: {signature: r.params for signature, r in best_of(group).items()}
        for key, group in groups.items()
    }


def _take(search: Search, records: Sequence[Record]) -> None:
    """Measured candidates of a log, relative to the start that was timed with them."""
    index = {params_key(params): i for i, params in enumerate(search.task.space)}
    mine: dict[int, list[Record]] = {}
    wrong: set[int] = set()
    for record in records:
        i = index.get(params_key(record.params))
        if i is None or record.rule != search.task.rule.name:
            continue
        if not record.checked:
            wrong.add(i)
        else:
            mine.setdefault(i, []).append(record)
    if search.task.start not in mine:
        return
    fastest = {i: best(group) for i, group in mine.items()}
    start = fastest[search.task.start]
    search.failed = wrong - fastest.keys()
    search.start_us = start.low_us
    for i, record in fastest.items():
        relative = record.low_us / (record.start_us or start.low_us)
        search.observe([(i, 1.0 if i == search.task.start else relative)])
    search.gains.clear()
    top = best(list(fastest.values()))
    if top.again:
        search.settle(index[params_key(top.params)])


def similar(task: Task, bests: Bests) -> list[int]:
    """Settings that did best for the most similar signatures of the same rule and arch."""
    known = bests.get((task.arch, task.rule.name), {})
    near = sorted(
        (signature for signature in known if signature != task.signature),
        key=lambda signature: distance(task.signature, signature),
    )
    wanted = [known[signature] for signature in near[:_SIMILAR]]
    return [task.space.index(params) for params in wanted if params in task.space]
