"""``bench``: latency of a compiled library, whole and layer by layer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.device_timer import time_calls
from tvm_q4.errors import InputError
from tvm_q4.library import Library, load, set_threads
from tvm_q4.sample_input import sample_input

_NS = 1e-6  # milliseconds in a nanosecond
_BUILTIN = "vm.builtin."
_LAUNCHES = 10
"""Launches of a kernel between two events: one alone would time the launch."""


def bench(
    library: Library | str | Path,
    *,
    warmup: int = 10,
    repeats: int = 50,
    min_ms: float = 500.0,
    layers: bool = False,
    quantized: bool = False,
    threads: int | None = None,
    cuda_graph: bool | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Latency of one batch.

    A time is that of one call of the network on a tensor that lies ready in memory. It includes the
    library's input quantization and the allocation of the result, not the copy of either from or to
    NumPy. On the CPU it is the wall clock around the call. On a GPU it is the time between two
    events in its stream, around one call that finds the GPU idle: what the GPU then waits for the
    host to launch its kernels, or their one CUDA graph, is in it.

    Parameters
    ----------
    library : Library, str or Path
        A library or its file.
    warmup : int
        Calls that are not counted.
    repeats : int
        Least number of counted calls.
    min_ms : float
        Least total time of the counted calls in milliseconds; calls are added until both hold.
    layers : bool
        Also time every kernel, in a second series of calls.
    quantized : bool
        Feed integers, so that the input's quantization is left out.
    threads, cuda_graph : optional
        See `tvm_q4.load`.
    seed : int
        Seed of the random input.

    Returns
    -------
    dict
        ``median_ms``, ``p10_ms``, ``p90_ms``, ``p99_ms``, ``mean_ms``, ``best_ms`` for the batch,
        ``n`` (counted calls), ``warmup``, ``batch``, ``images_per_second`` (from the median),
        ``threads``, ``input`` (dtype), ``device``, ``timer`` ("wall clock" or "device events"),
        ``cuda_graph`` (whether one was replayed), ``layers`` (see `bench_layers`; empty without
        `layers`).

    Raises
    ------
    InputError
        If a number is out of range, or `quantized` is asked of a library with a float input.
    """
    if warmup < 0 or repeats < 1 or min_ms < 0:
        msg = f"warmup {warmup}, repeats {repeats}, min_ms {min_ms}: need at least 0, 1 and 0"
        raise InputError(msg)
    if threads is not None:
        set_threads(threads)
    lib = library if isinstance(library, Library) else load(library, cuda_graph=cuda_graph)
    x = _input(lib, quantized, seed)
    times = call_timer(lib, x)(warmup, repeats, min_ms)
    rows = bench_layers(lib, x, warmup=warmup, repeats=max(5, repeats // 5)) if layers else []
    median = float(np.median(times))
    return {
        "median_ms": median,
        **{f"p{p}_ms": float(np.percentile(times, p)) for p in (10, 90, 99)},
        "mean_ms": float(times.mean()),
        "best_ms": float(times.min()),
        "n": len(times),
        "warmup": warmup,
        "batch": lib.input.batch,
        "images_per_second": lib.input.batch * 1e3 / median,
        "threads": thread_count(),
        "input": str(x.dtype),
        "device": lib.device,
        "timer": timer_name(lib),
        "cuda_graph": lib.cuda_graph,
        "layers": rows,
    }


def call_timer(lib: Library, x: NDArray) -> Callable[[int, int, float], NDArray[np.float64]]:
    """Timer of a library's calls on one batch `x`, which `bench` describes.

    Returns
    -------
    callable
        Of the number of calls first that are not counted, the least number of counted calls, and
        their least total time in milliseconds; gives the milliseconds of each counted call.
    """
    lib.invoke(x)
    return partial(_timer(lib), lib.function(str(x.dtype)), lib.tensor(x))


def timer_name(lib: Library) -> str:
    """What `bench` reads the time from."""
    return "device events" if _on_gpu(lib) else "wall clock"


def bench_layers(lib: Library, x: NDArray, *, warmup: int, repeats: int) -> list[dict[str, Any]]:
    """Time of every kernel of one run, in the order of the calls.

    Parameters
    ----------
    lib : Library
    x : ndarray
        One batch.
    warmup, repeats : int
        Calls of the network, uncounted and counted.

    Returns
    -------
    list of dict
        ``layer``, ``kernel``, ``op``, ``bits`` (such as ``w4a4``; None where a kernel is no
        convolution or linear layer), ``ms`` (median) and ``share`` of the sum. On the CPU each time
        holds a few microseconds of the measurement itself. On a GPU it is the mean of ten launches
        in a row between two events, in which a layer finds its data in the cache more often than in
        the network.
    """
    from tvm_q4.library.trace import expected_calls

    function, tensor = lib.function(str(x.dtype), plain=True), lib.tensor(x)
    if _on_gpu(lib):
        timer = _KernelTimer(lib.open().device, repeats)
        with lib.instrumented(timer):
            function(tensor)
        names, ms = timer.names, np.array(timer.ms)
    else:
        names, ms = _stopwatch_times(lib, lambda: function(tensor), warmup, repeats)
    return _rows(lib, names, ms, expected_calls(lib.metadata, str(x.dtype)))


def _stopwatch_times(
    lib: Library, call: Callable[[], Any], warmup: int, repeats: int
) -> tuple[list[str], NDArray[np.float64]]:
    """Kernels of one run, and the median time of each in milliseconds."""
    series: list[list[tuple[str, int]]] = []
    for i in range(warmup + repeats):
        stopwatch = _Stopwatch()
        with lib.instrumented(stopwatch):
            call()
        if i >= warmup:
            series.append(stopwatch.times)
    ms = np.median([[t for _, t in run] for run in series], axis=0) * _NS
    return [name for name, _ in series[0]], ms


def thread_count() -> int:
    """Threads of TVM's pool in this process."""
    import tvm

    return int(tvm.runtime.num_threads())


class _Stopwatch:
    """Instrument that times each kernel."""

    def __init__(self) -> None:
        self.times: list[tuple[str, int]] = []
        self._start = 0

    def __call__(self, _func: Any, name: str, before: bool, _result: Any, *_args: Any) -> int:
        if before:
            self._start = time.perf_counter_ns()
        elif not name.startswith(_BUILTIN):
            self.times.append((name, time.perf_counter_ns() - self._start))
        return 0


class _KernelTimer:
    """Instrument that launches each kernel several times more, for the GPU's clock to time."""

    def __init__(self, device: Any, repeats: int) -> None:
        self._device, self._repeats = device, repeats
        self.names: list[str] = []
        self.ms: list[float] = []

    def __call__(self, func: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        if before and not name.startswith(_BUILTIN):
            times = time_calls(func, args, self._device, self._repeats, _LAUNCHES)
            self.names.append(name)
            self.ms.append(float(np.median(times)))
        return 0


def _on_gpu(lib: Library) -> bool:
    return str(lib.metadata["target"]["kind"]) == "cuda"


def _input(lib: Library, quantized: bool, seed: int) -> NDArray:
    dtype = lib.input.dtype
    if quantized:
        if lib.input.integer is None:
            raise InputError("the library's input stays float32; bench it without quantized input")
        dtype = lib.input.integer
    return sample_input(lib.metadata, lib.input.batch, dtype=dtype, seed=seed)


def _timer(lib: Library) -> Callable[..., NDArray[np.float64]]:
    """What times calls of a function on a tensor; see `_time`."""
    if not _on_gpu(lib):
        return _time
    return partial(_device_time, lib.open().device)


def _time(
    function: Callable[[Any], Any], tensor: Any, warmup: int, repeats: int, min_ms: float
) -> NDArray[np.float64]:
    """Milliseconds of each counted call."""
    for _ in range(warmup):
        function(tensor)
    times: list[int] = []
    total = 0
    while len(times) < repeats or total * _NS < min_ms:
        start = time.perf_counter_ns()
        function(tensor)
        times.append(time.perf_counter_ns() - start)
        total += times[-1]
    return np.array(times, np.float64) * _NS


def _device_time(
    device: Any,
    function: Callable[[Any], Any],
    tensor: Any,
    warmup: int,
    repeats: int,
    min_ms: float,
) -> NDArray[np.float64]:
    """Milliseconds of each counted call, by the device's clock."""
    for _ in range(warmup):
        function(tensor)
    times = time_calls(function, [tensor], device, repeats)
    while times.sum() < min_ms:
        missing = math.ceil((min_ms - times.sum()) / max(times.mean(), 1e-3))
        times = np.concatenate([times, time_calls(function, [tensor], device, missing)])
    return times


def _rows(
    lib: Library, kernels: list[str], ms: NDArray, calls: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    layers = {layer["name"]: layer for layer in lib.metadata["layers"]}
    pending = list(calls)
    total = float(ms.sum())
    rows = []
    for kernel, value in zip(kernels, ms.tolist(), strict=True):
        known = bool(pending) and pending[0]["kernel"] == kernel
        name = pending.pop(0)["layer"] if known else kernel
        layer = layers.get(name) if known else None
        bits = f"w{layer['weight_bits']}a{layer['activation_bits']}" if layer else None
        op = layer["op"] if layer else None
        row = {"layer": name, "kernel": kernel, "op": op, "bits": bits}
        rows.append(row | {"ms": value, "share": value / total})
    return rows
