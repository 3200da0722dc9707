"""The learned ranking, and what it sees of candidates."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from tests.tune.fakes import speed
from tests.tune.fakes import tasks as make_tasks
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import EnvironmentMismatch
from tvm_q4.tune.cost_model import FEWEST_ROWS, CostModel, require_xgboost
from tvm_q4.tune.features import distance, rows, shape_features
from tvm_q4.tune.task import Task


def test_what_one_layer_teaches_ranks_the_candidates_of_another(tasks: list[Task]) -> None:
    pytest.importorskip("xgboost")
    taught, other = tasks[0], tasks[-1]
    assert taught.signature != other.signature
    model = CostModel(seed=1)
    start = speed(taught.space[taught.start])
    model.fit(list(rows(taught)), [speed(params) / start for params in taught.space])
    predicted = model.predict(rows(other))
    assert predicted is not None
    times = [speed(params) for params in other.space]
    best = np.argsort(predicted)[:5]
    assert min(times[i] for i in best) <= sorted(times)[2]
    again = CostModel(seed=1)
    again.fit(list(rows(taught)), [speed(params) / start for params in taught.space])
    np.testing.assert_array_equal(again.predict(rows(other)), predicted)


def test_few_measurements_teach_nothing(tasks: list[Task]) -> None:
    model = CostModel()
    model.fit(list(rows(tasks[0]))[: FEWEST_ROWS - 1], [1.0] * (FEWEST_ROWS - 1))
    assert model.predict(rows(tasks[0])) is None


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(EnvironmentMismatch, match=r'pip install "tvm-q4\[tune\]"'):
        require_xgboost()


def test_features_tell_settings_apart(tasks: list[Task]) -> None:
    for task in tasks:
        table = rows(task)
        assert table.shape[0] == len(task.space) and np.isfinite(table).all()
        assert len(np.unique(table, axis=0)) == len(task.space)
    assert len({rows(task).shape[1] for task in tasks}) == 1


@pytest.mark.parametrize("arch", [75, 80, 90])
def test_features_of_tensor_core_tiles_are_finite(arch: int) -> None:
    for task in make_tasks(CudaTarget((arch,)))[1]:
        table = rows(task)
        assert np.isfinite(table).all() and len(np.unique(table, axis=0)) == len(task.space)


def test_distance_is_that_of_the_extents() -> None:
    base = "conv2d n1 c64 56x56 o64 k3x3 s1x1 p1,1,1,1 d1x1 g1 w4 | %1=requantize(%0) | u4 -> u4"
    more = base.replace("o64", "o128")
    far = more.replace("56x56", "14x14")
    residual = base.replace("%1=requantize(%0)", "%1=add(%0,x1)")
    assert distance(base, base) == 0 < distance(base, more) < distance(base, far)
    assert distance(base, residual) > 0
    dense = shape_features("dense n8 c512 1x1 o1000 w8 | u8 -> f32")
    assert dense is not None and len(dense) == len(shape_features(base) or ())
    assert distance(base, "max_pool2d n1 c64 112x112 k3x3") == math.inf
