"""Distinct signatures of a model, and how users name them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tune import fakes
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import InputError
from tvm_q4.tune.task import Task, choose_tasks, params_key


def test_layers_of_one_signature_are_one_task(tasks: list[Task]) -> None:
    assert [task.layers for task in tasks] == [("a", "b"), ("c",)]
    for number, task in enumerate(tasks):
        assert task.index == number and task.arch == "cascadelake"
        assert len(task.space) == len(task.costs) > 1
        assert task.costs[task.start] == min(task.costs)


def test_every_family_has_its_tasks() -> None:
    _, found = fakes.tasks(CudaTarget((75, 86)))
    assert [(t.name, t.arch) for t in found] == [
        ("a_sm75", "sm_75"), ("c_sm75", "sm_75"), ("a_sm80", "sm_86"), ("c_sm80", "sm_86"),
    ]  # fmt: skip
    assert [t.index for t in found] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "chosen"), [("all", [0, 1]), ("1", [1]), ("b", [0]), (" c , a,0", [0, 1])]
)
def test_tasks_are_chosen_by_number_or_layer(
    tasks: list[Task], text: str, chosen: list[int]
) -> None:
    assert [task.index for task in choose_tasks(tasks, text)] == chosen


@pytest.mark.parametrize("text", ["2", "", "x", "a,nothing", "-1"])
def test_unknown_tasks_are_named(tasks: list[Task], text: str) -> None:
    with pytest.raises(InputError, match=r"does not exist; see --tasks list for the 2 there are"):
        choose_tasks(tasks, text)


def test_equal_parameters_have_equal_keys(tasks: list[Task]) -> None:
    params = tasks[0].space[0]
    assert params_key(params) == params_key(dict(reversed(params.items())))
    assert len({params_key(p) for p in tasks[0].space}) == len(tasks[0].space)
    assert replace(tasks[0]) != tasks[0]  # a task is a key by itself
