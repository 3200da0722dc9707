"""Which task gets the next batch."""

from __future__ import annotations

from dataclasses import replace

from tvm_q4.tune.features import rows
from tvm_q4.tune.scheduler import next_search, promise
from tvm_q4.tune.search import Search, SearchOptions
from tvm_q4.tune.task import Task


def searches(tasks: list[Task]) -> list[Search]:
    return [Search(task, rows(task), SearchOptions()) for task in tasks]


def begun(task: Task, start_us: float, relative: float, gains: list[float]) -> Search:
    search = Search(task, rows(task), SearchOptions(), start_us=start_us)
    search.observe([(task.start, 1.0)])
    search.relative[(task.start + 1) % len(task.space)] = relative
    search.gains = gains
    return search


def test_each_task_is_begun_once_the_costliest_first(tasks: list[Task]) -> None:
    first = searches(tasks)
    cost = [min(s.task.costs) * len(s.task.layers) for s in first]
    chosen = next_search(first)
    assert chosen is first[cost.index(max(cost))]
    chosen.start_us = 5.0
    assert next_search(first) is not chosen


def test_time_gained_lately_and_layers_that_share_a_task_count(tasks: list[Task]) -> None:
    one = replace(tasks[0], layers=("a",))
    two = replace(tasks[0], layers=("a", "b"))
    slow, fast = begun(one, 100.0, 0.9, [0.01]), begun(one, 10.0, 0.9, [0.01])
    assert next_search([fast, slow]) is slow
    still, moving = begun(one, 50.0, 0.9, [0.0, 0.0]), begun(one, 50.0, 0.9, [0.0, 0.3])
    assert next_search([still, moving]) is moving
    shared = begun(two, 50.0, 0.9, [0.0, 0.0])
    assert promise(shared) == 2 * promise(still)


def test_finished_tasks_get_nothing(tasks: list[Task]) -> None:
    search = begun(tasks[0], 10.0, 0.9, [0.1])
    search.stale = SearchOptions().early_stop
    assert next_search([search]) is None and next_search([]) is None
