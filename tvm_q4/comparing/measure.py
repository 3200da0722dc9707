"""Latencies of several libraries, measured in turn; predicted ones where the device is not here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.benchmark import bench_layers, call_timer, thread_count, timer_name
from tvm_q4.errors import InputError
from tvm_q4.library import Library
from tvm_q4.library.host import cpu_name
from tvm_q4.progress import ProgressBar
from tvm_q4.sample_input import sample_input
from tvm_q4.tuning_logs.records import best_records
from tvm_q4.turns import in_turn, ratio_by_round

_CALLS = 5
"""Least counted calls of a turn."""
_LAYER_WARMUP, _LAYER_REPEATS = 5, 30

Rounds = dict[str, list[NDArray[np.float64]]]


def measure(
    libraries: Mapping[str, Library],
    *,
    rounds: int,
    seconds: float,
    seed: int,
    progress: bool | None = None,
) -> Rounds:
    """Milliseconds of every call, by library and round.

    A turn is one call that is not counted, which brings the library's data back into the caches,
    then calls one after another for `seconds`, at least five. What a call is, `tvm_q4.bench` says.

    Raises
    ------
    InputError
        If the libraries take inputs of different shapes.
    """
    _check_shapes(libraries)
    turns = {}
    for name, lib in libraries.items():
        x = sample_input(lib.metadata, lib.input.batch, dtype=lib.input.dtype, seed=seed)
        turns[name] = partial(call_timer(lib, x), 1, _CALLS, seconds * 1e3)
    times: Rounds = {name: [] for name in libraries}
    with ProgressBar("measure", rounds * len(turns), show=progress) as bar:
        for name, found in in_turn(turns, rounds):
            times[name].append(found)
            bar.advance()
    return times


def latency_entry(lib: Library, rounds: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """A library's latency for the report, from its rounds of `measure`."""
    times = np.concatenate(rounds)
    median = float(np.median(times))
    return {
        "median_ms": median,
        "p10_ms": float(np.percentile(times, 10)),
        "p90_ms": float(np.percentile(times, 90)),
        "images_per_second": lib.input.batch * 1e3 / median,
        "n": len(times),
        "rounds_ms": [float(np.median(part)) for part in rounds],
        "source": "measured",
        "device": cpu_name() if lib.device == "cpu" else lib.device,
        "threads": thread_count(),
        "timer": timer_name(lib),
        "cuda_graph": lib.cuda_graph,
    }


def predicted_entry(lib: Library, log: Sequence[str | Path]) -> dict[str, Any] | None:
    """A latency that nobody measured: the sum of convolutions and linear layers.

    Each is its record's time where a log has one, else what its rule predicts for the device. None
    for CPUs, whose predictions have no unit.
    """
    layers = lib.metadata["layers"]
    if any(layer.get("predicted_us") is None for layer in layers):
        return None
    family = lib.metadata.get("families", [{}])[-1]
    arch = f"sm_{(family.get('archs') or lib.metadata['target']['archs'])[-1]}"
    records = best_records(log, arch)
    found = [records.get(layer["signature"]) for layer in layers]
    us = [
        record.low_us if record else layer["predicted_us"]
        for record, layer in zip(found, layers, strict=True)
    ]
    logged = sum(record is not None for record in found)
    total = sum(us) / 1e3
    return {
        "median_ms": total,
        "p10_ms": None,
        "p90_ms": None,
        "images_per_second": lib.input.batch * 1e3 / total,
        "n": 0,
        "rounds_ms": [],
        "source": "predicted",
        "device": arch,
        "layers_from_log": logged,
        "layers_predicted": len(layers) - logged,
    }


def latency_ratio(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, float | None] | None:
    """``median``, ``low`` and ``high`` of ours / other over rounds; only the first if predicted."""
    if ours["source"] != other["source"]:
        return None
    if ours["source"] == "predicted":
        return {"median": ours["median_ms"] / other["median_ms"], "low": None, "high": None}
    found = ratio_by_round(ours["rounds_ms"], other["rounds_ms"])
    return {"median": found.median, "low": found.low, "high": found.high}


def layer_times(lib: Library, seed: int) -> dict[str, float]:
    """Milliseconds of each layer, by kernels timed one by one in a run of the network."""
    x = sample_input(lib.metadata, lib.input.batch, dtype=lib.input.dtype, seed=seed)
    rows = bench_layers(lib, x, warmup=_LAYER_WARMUP, repeats=_LAYER_REPEATS)
    return {row["layer"]: row["ms"] for row in rows if row["op"] is not None}


def predicted_layer_times(lib: Library) -> dict[str, float]:
    """Milliseconds of each layer that its rule predicts; empty for CPUs."""
    layers = lib.metadata["layers"]
    pairs = {layer["name"]: layer.get("predicted_us") for layer in layers}
    return {name: us / 1e3 for name, us in pairs.items() if us is not None}


def _check_shapes(libraries: Mapping[str, Library]) -> None:
    shapes = {name: lib.input.shape for name, lib in libraries.items()}
    for name, shape in shapes.items():
        first = next(iter(shapes))
        if shape != shapes[first]:
            msg = f"config '{name}' takes {list(shape)}, config '{first}' {list(shapes[first])}"
            raise InputError(f"{msg}; compare models of one input, or give --batch")
