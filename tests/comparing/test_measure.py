"""Latencies: measured ones in turn, predicted ones with what they are made of."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from tests.library import tiny, tiny_cuda
from tests.tuning_logs.test_records import BASE, write
from tvm_q4.comparing import measure as module
from tvm_q4.comparing.measure import (
    latency_entry,
    latency_ratio,
    layer_times,
    measure,
    predicted_entry,
    predicted_layer_times,
)
from tvm_q4.errors import InputError
from tvm_q4.library import Library, load


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return load(tiny.write(tmp_path_factory.mktemp("measure") / "tiny.so"))


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A library for GPUs, of which this machine has none; its layers took 3 us by prediction."""
    path = tiny_cuda.write_emulated(tmp_path_factory.mktemp("measure_cuda") / "tiny.so")
    lib = load(path, lazy=True)
    for layer in lib.metadata["layers"]:
        layer |= {"predicted_us": 3.0, "signature": "s"}
    return lib


def test_libraries_are_timed_in_turn(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def timer(lib: Library, x: np.ndarray) -> object:
        assert x.shape == lib.input.shape
        return lambda *arguments: order.append(arguments) or np.array([1.0])

    monkeypatch.setattr(module, "call_timer", timer)
    found = measure({"a": library, "b": library}, rounds=2, seconds=0.5, seed=0)
    assert order == [(1, 5, 500.0)] * 4
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 2, "b": 2}


def test_real_times(library: Library) -> None:
    rounds = measure({"a": library}, rounds=2, seconds=0, seed=0)["a"]
    assert [len(part) for part in rounds] == [5, 5]
    entry = latency_entry(library, rounds)
    assert 0 < entry["p10_ms"] <= entry["median_ms"] <= entry["p90_ms"]
    assert (entry["n"], entry["source"], entry["timer"]) == (10, "measured", "wall clock")
    assert entry["threads"] >= 1 and entry["device"]


def test_an_entry_pools_all_calls(library: Library) -> None:
    entry = latency_entry(library, [np.arange(1.0, 51), np.arange(51.0, 102)])
    assert (entry["median_ms"], entry["p10_ms"], entry["p90_ms"], entry["n"]) == (51, 11, 91, 101)
    assert entry["rounds_ms"] == [25.5, 76.0]
    assert entry["images_per_second"] == pytest.approx(2e3 / 51)


def test_inputs_must_have_one_shape(library: Library) -> None:
    other = copy.copy(library)
    other.input = other.input.__class__("x", (1, 3, 9, 9), "float32", None, None)
    with pytest.raises(InputError, match=r"config 'b' takes \[1, 3, 9, 9\], config 'a' \[2, 3"):
        measure({"a": library, "b": other}, rounds=1, seconds=0, seed=0)


def test_a_prediction_is_the_sum_of_layers(cuda: Library) -> None:
    count = len(cuda.metadata["layers"])
    entry = predicted_entry(cuda, [])
    assert entry is not None
    assert entry["median_ms"] == pytest.approx(0.003 * count)
    assert (entry["source"], entry["device"]) == ("predicted", "sm_89")
    assert (entry["layers_from_log"], entry["layers_predicted"]) == (0, count)
    assert predicted_layer_times(cuda) == {
        layer["name"]: 0.003 for layer in cuda.metadata["layers"]
    }


def test_a_log_comes_before_a_prediction(cuda: Library, tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", BASE | {"arch": "sm_89", "signature": "s"})
    entry = predicted_entry(cuda, [log])
    count = len(cuda.metadata["layers"])
    assert entry is not None
    assert (entry["layers_from_log"], entry["layers_predicted"]) == (count, 0)
    assert entry["median_ms"] == pytest.approx(min(BASE["times_us"]) / 1e3 * count)


def test_cpus_have_no_predicted_time(library: Library) -> None:
    assert predicted_entry(library, []) is None
    assert predicted_layer_times(library) == {}


def test_ratios_of_predictions_have_no_spread() -> None:
    a = {"source": "predicted", "median_ms": 1.0}
    b = {"source": "predicted", "median_ms": 4.0}
    assert latency_ratio(a, b) == {"median": 0.25, "low": None, "high": None}


def test_layer_times_are_those_of_layers(library: Library) -> None:
    assert list(layer_times(library, 0)) == ["double"]
