"""A small task, and a builder and a measurer without TVM: a candidate's time is a formula."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from tests.schedules.builders import U8, module, requantized, weights
from tvm_q4 import ops
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.schedules.rule import Params
from tvm_q4.targets import parse_target
from tvm_q4.tune.candidates import Candidates
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.session import Session
from tvm_q4.tune.task import Task, extract_tasks
from tvm_q4.tune.time_job import Sample, Timing
from tvm_q4.tune.workers import Failure
from tvm_q4.variants import variants

CPU = parse_target('{"kind": "llvm", "mcpu": "cascadelake", "num-cores": 2}')
Speed = Callable[[Params], float]


def network(seed: int = 0) -> tvm.IRModule:
    """Integer-stage module of three convolutions; the first two have one signature."""
    rng = np.random.default_rng(seed)

    def emit(b, x):
        for name, out in (("a", 32), ("b", 32), ("c", 64)):
            w = weights(rng, 8, (out, 32, 3, 3))
            acc = b.emit(ops.conv2d(x, w, [0], name=name, strides=[1, 1], padding=[1] * 4))
            x = requantized(b, acc, rng, name=f"{name}.out")
        return x

    return module((1, 32, 9, 7), U8, emit)


def tasks(target: Any = CPU) -> tuple[tvm.IRModule, list[Task]]:
    """The fused network and its tasks."""
    fused = FuseEpilogue(network())
    return fused, extract_tasks(fused, variants(target))


def speed(params: Params) -> float:
    """Microseconds: best where a tile of the register file is about square and half full."""
    pixels = int(params["tile_h"]) * int(params["tile_w"])
    return 100 + abs(pixels - 8) + 10 * abs(int(params["blocks"]) - 2)


class FakeBuilder:
    """Gives folders whose numbers stand for parameters; counts what it builds."""

    def __init__(self, folder: Path, broken: Callable[[Params], bool] = lambda _: False) -> None:
        self.folder, self.broken = folder, broken
        self.params: dict[Path, Params] = {}
        self._numbers = itertools.count()

    def build(self, task: Task, candidates: Sequence[Params]) -> list[Kernel | Failure]:
        out: list[Kernel | Failure] = []
        for params in candidates:
            if self.broken(params):
                out.append(Failure("no registers left"))
                continue
            kernel = Kernel(self.folder / f"kernel{next(self._numbers)}")
            self.params[kernel.folder] = params
            out.append(kernel)
        return out


class HollowBuilder(FakeBuilder):
    """Makes folders that hold no code."""

    def __enter__(self) -> HollowBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def build(self, task: Task, candidates: Sequence[Params]) -> list[Kernel | Failure]:
        built = super().build(task, candidates)
        for kernel in built:
            if isinstance(kernel, Kernel):
                kernel.folder.mkdir()
                kernel.write(task.symbol, [], [])
        return built


class FakeMeasurer:
    """Times by `speed`; candidates of `wrong` give wrong bits, `hook` is called before a batch."""

    facts: Mapping[str, Any] = {"device": "fake", "threads": 1}

    def __init__(
        self,
        builder: FakeBuilder,
        speed: Speed = speed,
        wrong: Callable[[Params], bool] = lambda _: False,
        hook: Callable[[int], Failure | None] = lambda _: None,
    ) -> None:
        self.builder, self.speed, self.wrong, self.hook = builder, speed, wrong, hook
        self.calls = 0
        self.timed: list[Params] = []

    def measure(
        self, case_file: Path, groups: Sequence[Sequence[Kernel]], timing: Timing
    ) -> list[list[Sample] | Failure]:
        failure = self.hook(self.calls)
        self.calls += 1
        if failure is not None:
            return [failure for _ in groups]
        return [[self._sample(kernel) for kernel in group] for group in groups]

    def _sample(self, kernel: Kernel) -> Sample:
        params = self.builder.params[kernel.folder]
        self.timed.append(params)
        us = self.speed(params)
        return Sample((us * 1.5, us, us * 1.1), not self.wrong(params))


def session(
    folder: Path, log: Path, chosen: Sequence[Task], seed: int = 0, **measuring: Any
) -> tuple[Session, FakeMeasurer]:
    """A session with fakes; `measuring` are arguments of `FakeMeasurer`, and ``broken``."""
    folder.mkdir(exist_ok=True)
    builder = FakeBuilder(folder, measuring.pop("broken", lambda _: False))
    measurer = FakeMeasurer(builder, **measuring)
    candidates = Candidates(builder, measurer, folder)  # type: ignore[arg-type]
    return Session(chosen, candidates, log, seed=seed), measurer


def flat(values: Sequence[float]) -> NDArray[np.float32]:
    """Scores as a cost model gives them."""
    return np.array(values, np.float32)
