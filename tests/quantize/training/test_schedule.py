"""Learning rates by step, and what the optimizer decays."""

import math

import pytest

torch = pytest.importorskip("torch")

from tests.quantize.training.tiny import network  # noqa: E402
from tvm_q4.quantize.training.options import TrainingOptions  # noqa: E402
from tvm_q4.quantize.training.schedule import (  # noqa: E402
    make_optimizer,
    make_schedule,
    rate_factor,
)


def _rates(options, steps):
    optimizer = make_optimizer(network(), options)
    schedule = make_schedule(optimizer, options, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_one_cycle_rises_in_a_line_and_falls_by_a_cosine():
    rates = _rates(TrainingOptions(learning_rate=2.0, warmup=0.25), 20)
    assert rates[:6] == pytest.approx([2 / 6, 4 / 6, 1.0, 8 / 6, 10 / 6, 2.0])
    assert rates[5:] == pytest.approx([1 + math.cos(math.pi * i / 15) for i in range(15)])


def test_cosine_starts_at_the_top():
    rates = _rates(TrainingOptions(learning_rate=2.0, schedule="cosine"), 10)
    assert rates == pytest.approx([1 + math.cos(math.pi * i / 10) for i in range(10)])


@pytest.mark.parametrize("rising", [0, 1])
def test_a_single_step_is_possible(rising):
    assert rate_factor(0, 1, rising) > 0


def test_only_weights_are_decayed():
    model = network()
    groups = make_optimizer(model, TrainingOptions(weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
