"""Checking and timing built candidates in turn, in a worker process or on a remote device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tvm_q4.tune.case import Case
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tuning_logs.records import low_us

_MOST_CALLS = 10_000


@dataclass(frozen=True)
class Timing:
    """How kernels are timed.

    Attributes
    ----------
    rounds : int
        Samples of each kernel; all kernels of a group have their turn in each round.
    burst_ms : float
        Least time of a sample, which is the mean of as many calls in a row.
    limit_s : float
        Seconds that one group may take, after which it has failed.
    """

    rounds: int = 10
    burst_ms: float = 1.0
    limit_s: float = 60.0


@dataclass(frozen=True)
class Sample:
    """What one kernel of a group did.

    Attributes
    ----------
    times_us : tuple of float
        Microseconds of a call, one sample a round.
    exact : bool
        Whether its outputs were the expected ones, bit for bit.
    """

    times_us: tuple[float, ...]
    exact: bool

    @property
    def low_us(self) -> float:
        """What candidates are compared by (see `tuning_logs.records`)."""
        return low_us(self.times_us)


def joined(samples: Sequence[Sample]) -> Sample:
    """What one kernel did in several groups."""
    times = tuple(us for sample in samples for us in sample.times_us)
    return Sample(times, all(sample.exact for sample in samples))


Load = Callable[[Path], Any]
"""What makes a module of a kernel's shared object, here or on a device elsewhere."""


def time_group(
    folders: Sequence[str], case_file: str, timing: Timing, device: str = "cpu"
) -> list[Sample]:
    """Check and time candidates of one layer on a device of this machine.

    Parameters
    ----------
    folders : sequence of str
        Of `Kernel`, timed in turn.
    case_file : str
        Written by `Case.save`.
    timing : Timing
    device : {"cpu", "cuda"}
    """
    kernels = [Kernel(Path(folder)) for folder in folders]
    case = _case(case_file)
    return measure(
        kernels, case, timing, _open(device), lambda path: tvm.runtime.load_module(str(path))
    )


def _open(device: str) -> Any:
    if device == "cpu":
        return tvm.cpu()
    from tvm_q4.library.cuda_device import open_device

    return open_device().handle  # which loads TVM's runtime for CUDA


@lru_cache(maxsize=2)
def _case(path: str) -> Case:
    return Case.load(Path(path))


def measure(
    kernels: Sequence[Kernel], case: Case, timing: Timing, device: Any, load: Load
) -> list[Sample]:
    """Check and time candidates of one layer on `device`, which may be a remote one.

    Kernels are timed in turn, round by round, so that what slows a machine down for a while slows
    all of them. Before each sample the kernel runs once uncounted.
    """
    inputs = [tvm.runtime.tensor(array, device) for array in case.inputs]
    return time_in_turn([Run(kernel, case, inputs, device, load) for kernel in kernels], timing)


def time_in_turn(runs: Sequence[Run], timing: Timing) -> list[Sample]:
    """Check loaded kernels, then time them round by round."""
    exact = [run.is_exact() for run in runs]
    for run in runs:
        run.calibrate(timing.burst_ms)
    times: list[list[float]] = [[] for _ in runs]
    for number in range(timing.rounds):
        order = range(len(runs))
        for i in order if number % 2 == 0 else reversed(order):
            times[i].append(runs[i].sample_us())
    return [Sample(tuple(t), ok) for t, ok in zip(times, exact, strict=True)]


class Run:
    """A loaded kernel with its arguments on the device; `inputs` are the case's, there already."""

    def __init__(
        self, kernel: Kernel, case: Case, inputs: list[Any], device: Any, load: Load
    ) -> None:
        facts = kernel.facts()
        self._case = case
        self._module, self._symbol, self._device = load(kernel.library), facts["symbol"], device
        self._outputs = [tvm.runtime.tensor(np.zeros_like(y), device) for y in case.outputs]
        constants = [tvm.runtime.tensor(array, device) for array in kernel.constants()]
        scratch = [tvm.runtime.empty(tuple(s), dtype, device) for s, dtype in facts["scratch"]]
        self._arguments = [*inputs, *constants, *scratch, *self._outputs]
        self._evaluate: Any = None

    def is_exact(self) -> bool:
        """Whether a call on the case's inputs gives its outputs."""
        self._module[self._symbol](*self._arguments)
        self._device.sync()
        return self._case.matches([tensor.numpy() for tensor in self._outputs])

    def calibrate(self, burst_ms: float) -> None:
        """Choose how many calls make a sample."""
        once = max(self._evaluator(1)(*self._arguments).mean, 1e-7)
        calls = min(_MOST_CALLS, math.ceil(burst_ms * 1e-3 / once))
        self._evaluate = self._evaluator(max(1, calls))

    def sample_us(self) -> float:
        """Microseconds of a call, the mean of a burst of them."""
        return float(self._evaluate(*self._arguments).mean) * 1e6

    def _evaluator(self, calls: int) -> Any:
        return self._module.time_evaluator(self._symbol, self._device, number=calls, repeat=1)


def describe_device(device: str = "cpu") -> dict[str, Any]:
    """What a record says about the device of this process: ``device`` and ``threads``.

    Raises
    ------
    LibraryError
        If there is no such device.
    """
    if device == "cuda":
        from tvm_q4.library.cuda_device import open_device

        gpu = open_device()
        return {"device": gpu.name, "device_arch": gpu.arch}
    from tvm_q4.library.host import cpu_name

    return {"device": cpu_name(), "threads": int(tvm.runtime.num_threads())}
