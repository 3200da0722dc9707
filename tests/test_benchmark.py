"""Latency measurement: which numbers come out, and that they belong to the run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tvm

from tests.library import tiny, tiny_cuda
from tvm_q4 import benchmark
from tvm_q4.benchmark import bench
from tvm_q4.errors import InputError
from tvm_q4.library import Library, cuda_device, load


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return load(tiny.write(tmp_path_factory.mktemp("bench") / "tiny.so"))


def test_numbers(library):
    result = bench(library, warmup=2, repeats=7, min_ms=0)
    assert result["n"] == 7 and result["batch"] == 2 and result["input"] == "float32"
    keys = ("best_ms", "p10_ms", "median_ms", "p90_ms", "p99_ms")
    times = [result[key] for key in keys]
    assert times == sorted(times) and times[0] > 0
    assert result["images_per_second"] == pytest.approx(2e3 / result["median_ms"])
    assert result["threads"] >= 1 and result["layers"] == []
    json.dumps(result)


def test_least_duration(library):
    result = bench(library, warmup=0, repeats=1, min_ms=20)
    assert result["n"] * result["mean_ms"] >= 20


def test_percentiles_of_known_times(library, monkeypatch):
    times = np.arange(1, 102, dtype=np.float64)
    monkeypatch.setattr(benchmark, "_time", lambda *_: times)
    result = bench(library)
    assert (result["median_ms"], result["p10_ms"], result["p90_ms"]) == (51, 11, 91)
    assert (result["p99_ms"], result["mean_ms"], result["best_ms"]) == (100, 51, 1)


@pytest.mark.parametrize("quantized", [False, True])
def test_layers(library, quantized):
    result = bench(library, warmup=1, repeats=5, min_ms=0, layers=True, quantized=quantized)
    rows = result["layers"]
    first = ("import_input", "import_input") if quantized else ("input", "quantize_input")
    found = [(row["layer"], row["kernel"]) for row in rows]
    assert found == [first, ("double", "double"), ("fc", "head")]
    assert [(row["op"], row["bits"]) for row in rows[1:]] == [("conv2d", "w4a4"), (None, None)]
    assert all(row["ms"] > 0 for row in rows)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert result["input"] == ("int8" if quantized else "float32")


def test_the_library_is_left_as_it_was(library):
    x = np.random.default_rng(0).normal(0, 3, (3, 3, 4, 5)).astype(np.float32)
    bench(library, warmup=0, repeats=1, min_ms=0, layers=True)
    assert np.array_equal(library.run(x), tiny.expected(tiny.quantize(x)))


@pytest.mark.parametrize(
    "options", [{"warmup": -1}, {"repeats": 0}, {"min_ms": -1.0}, {"threads": 0}]
)
def test_bad_options(library, options):
    with pytest.raises(InputError, match="at least"):
        bench(library, **options)


def test_float_input_has_no_integers(tmp_path):
    entry = tiny.metadata()["input"] | {"quantized": None}
    library = load(tiny.write(tmp_path / "a.so", input=entry))
    with pytest.raises(InputError, match="stays float32"):
        bench(library, quantized=True)


@pytest.fixture(scope="module")
def cuda_path(tmp_path_factory):
    return tiny_cuda.write_emulated(tmp_path_factory.mktemp("bench_cuda") / "tiny.so")


@pytest.fixture
def gpu(monkeypatch):
    """This machine's CPU in place of a GPU."""
    device = cuda_device.CudaDevice(tvm.cpu(0), 80, "Test GPU")
    monkeypatch.setattr(cuda_device, "open_device", lambda: device)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("graph", [True, False])
def test_on_a_gpu(cuda_path, graph):
    result = bench(cuda_path, warmup=1, repeats=5, min_ms=0, cuda_graph=graph)
    assert result["n"] == 5 and result["median_ms"] > 0
    assert result["device"] == "Test GPU (sm_80)" and result["timer"] == "device events"
    assert result["cuda_graph"] is graph
    json.dumps(result)


@pytest.mark.usefixtures("gpu")
def test_least_duration_on_a_gpu(cuda_path):
    result = bench(cuda_path, warmup=0, repeats=1, min_ms=5)
    assert result["n"] * result["mean_ms"] >= 5


@pytest.mark.usefixtures("gpu")
def test_layers_on_a_gpu(cuda_path):
    library = load(cuda_path)
    rows = bench(library, warmup=0, repeats=5, min_ms=0, layers=True)["layers"]
    assert [(row["layer"], row["kernel"]) for row in rows] == [
        ("input", "quantize_input_sm80"),
        ("double", "double_sm80"),
        ("fc", "head_sm80"),
    ]
    assert all(row["ms"] > 0 for row in rows)
    x = np.random.default_rng(0).normal(0, 3, (3, 3, 4, 5)).astype(np.float32)
    assert np.array_equal(library.run(x), tiny.expected(tiny.quantize(x)))


def test_on_the_cpu_the_wall_clock_is_read(library):
    result = bench(library, warmup=0, repeats=1, min_ms=0)
    assert (result["device"], result["timer"], result["cuda_graph"]) == ("cpu", "wall clock", False)
