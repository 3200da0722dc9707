"""Which candidates a search proposes, and when it ends."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tune.fakes import flat, speed
from tvm_q4.tune.features import rows
from tvm_q4.tune.search import Search, SearchOptions
from tvm_q4.tune.task import Task


@pytest.fixture
def search(tasks: list[Task]) -> Search:
    return Search(tasks[0], rows(tasks[0]), SearchOptions(batch=8, explore=0.25, early_stop=12))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_start_is_measured_first_then_seeds_then_predictions(search: Search) -> None:
    order = np.argsort(search.task.costs, kind="stable").tolist()
    search.seeds = [order[20], order[21]]
    chosen = search.propose(8, None, rng())
    assert chosen[:3] == [search.task.start, order[20], order[21]]
    predicted = [i for i in order if i not in chosen[:3]]
    assert chosen[3:6] == predicted[:3]  # two of eight are drawn at random
    assert len(set(chosen)) == 8


def test_a_batch_of_one_is_the_start(search: Search) -> None:
    assert search.propose(1, None, rng()) == [search.task.start]


def test_scores_of_the_model_replace_predictions(search: Search) -> None:
    search.observe([(search.task.start, 1.0)])
    scores = flat(np.arange(len(search.task.space))[::-1].tolist())
    chosen = search.propose(4, scores, rng())
    best = [i for i in range(len(search.task.space))[::-1] if i != search.task.start]
    assert chosen[:3] == best[:3]
    assert chosen[3] not in best[:3]


def test_nothing_is_proposed_twice_until_the_space_is_exhausted(search: Search) -> None:
    seen: list[int] = []
    generator = rng()
    while search.open:
        chosen = search.propose(7, None, generator)
        assert chosen
        search.observe((i, 1.0 if len(seen) % 3 else None) for i in chosen)
        seen += chosen
    assert sorted(seen) == list(range(len(search.task.space)))
    assert search.propose(7, None, generator) == []
    assert search.finished and search.trials == len(seen)


def test_a_search_without_improvement_ends_early(search: Search) -> None:
    search.observe([(search.task.start, 1.0)])
    search.observe((i, 1.1) for i in search.open[:11])
    assert not search.finished and search.stale == 11
    search.observe([(search.open[0], 0.5)])
    assert search.stale == 0 and search.gains[-1] == 0.5
    search.observe((i, 0.4999) for i in search.open[:12])  # less than a notable gain
    assert search.finished


def test_a_search_whose_start_fails_is_given_up(search: Search) -> None:
    search.observe([(search.task.start, None)])
    assert search.finished and search.best is None and search.best_us is None


def test_what_was_measured_again_is_best_even_where_single_times_were_lucky(
    search: Search,
) -> None:
    search.start_us = 10.0
    search.observe([(0, 1.0), (1, 0.5), (2, 0.8)])
    assert search.best == 1
    search.settle(2)
    assert search.best == 2 and search.best_us == pytest.approx(8.0)
    search.observe([(3, 0.7)])
    assert search.best == 3 and search.confirmed == 2


def test_formula_of_the_fakes_has_its_best_in_the_space(search: Search) -> None:
    times = [speed(params) for params in search.task.space]
    assert min(times) == 100 and times[search.task.start] > 100
