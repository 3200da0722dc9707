"""MetaSchedule's own search on its default space, with a builder and a runner that work.

What TVM 0.27 needs to run at all: its VNNI intrinsic fails LLVM's verifier, so the same instruction
is registered anew, with the operand types that LLVM wants, under the name that the default space
looks for; and its `LocalBuilder` imports all intrinsics in every worker, which takes longer than
its limit. Builder and runner here use the worker processes of `tvm_q4.tune`, which stay alive; so
MetaSchedule pays for its search, its builds and its measurements, and for no start of a process.
Everything else is TVM's default: space, evolutionary search, XGBoost model.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tuning_job
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import TensorIntrin
from tvm.s_tir import meta_schedule as ms
from tvm.script import tirx as T
from tvm.target import Target

from tvm_q4.tune.time_job import Timing
from tvm_q4.tune.workers import Failure, Pool

_BUILD_LIMIT_S = 60.0
_PER_ROUND = 16
"""Candidates of a round: with TVM's default of 64, a small budget is one round without learning."""


@T.prim_func(s_tir=True)
def _dot_desc(
    A: T.Buffer((4,), "uint8", offset_factor=1),
    B: T.Buffer((16, 4), "int8", offset_factor=1),
    C: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:16], A[0:4], B[0:16, 0:4])
        T.writes(C[0:16])
        for i in T.serial(0, 16):
            for k in T.serial(0, 4):
                with T.sblock("update"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")


@T.prim_func(s_tir=True)
def _dot_vnni(
    A: T.Buffer((4,), "uint8", offset_factor=1),
    B: T.Buffer((16, 4), "int8", offset_factor=1),
    C: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:16], A[0:4], B[0:16, 0:4])
        T.writes(C[0:16])
        A_word = T.reinterpret(A.vload([0], "uint8x4"), dtype="int32")
        B_bytes = B.vload([0, 0], dtype="int8x64")
        C_lanes = C.vload([0], dtype="int32x16")
        C[T.ramp(T.int32(0), 1, 16)] = T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
            C_lanes,
            T.reinterpret(T.broadcast(A_word, 16), dtype="int8x64"),
            B_bytes,
            dtype="int32x16",
        )


def prepare() -> None:
    """Do once what takes MetaSchedule a minute, so that no search is charged for it."""
    logging.disable(logging.INFO)  # its task scheduler's tables
    import tvm.s_tir.tensor_intrin  # noqa: F401  MetaSchedule imports it before its first search

    TensorIntrin.register("dot_16x4_vnni", _dot_desc, _dot_vnni, override=True)


@dataclass
class Measuring:
    """What a search builds and measures with.

    Attributes
    ----------
    builders, device : Pool
        Worker processes that import `tuning_job`.
    folder : Path
        For kernels; those but the best are removed.
    case_file : Path
        Of the workload.
    start : tuple of str
        Our start kernel's folder and the file of its case: timed in turn with every candidate.
    timing : Timing
    """

    builders: Pool
    device: Pool
    folder: Path
    case_file: Path
    start: tuple[str, str]
    timing: Timing


@dataclass
class Found:
    """What a search found.

    Attributes
    ----------
    curve : list of (float, float or None)
        For each candidate: seconds until it was measured, its time over that of our start; None
        where it has none, or wrong bits.
    best : dict of str to (float, str)
        The best candidate, relative time and folder: ``equal`` within our search's seconds, if
        there is one, and ``final``.
    failures : list of str
    seconds : float
    """

    curve: list[tuple[float, float | None]] = field(default_factory=list)
    best: dict[str, tuple[float, str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class _TimeIsUp(Exception):
    pass


class _Search:
    """Builds and measures for MetaSchedule and keeps what it sees."""

    def __init__(self, measuring: Measuring, equal_s: float, limit_s: float) -> None:
        self.found, self._m = Found(), measuring
        self._equal_s, self._limit_s = equal_s, limit_s
        self._numbers = itertools.count()
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def build(self, inputs: list[Any]) -> list[Any]:
        jobs = []
        for item in inputs:
            folder = str(self._m.folder / f"peer{next(self._numbers)}")
            jobs.append((tvm.ir.save_json(item.mod), str(item.target), folder))
        built = self._m.builders.map(tuning_job.build, jobs, _BUILD_LIMIT_S)
        failed = [f.reason for f in built if isinstance(f, Failure)]
        self.found.failures += failed
        self.found.curve += [(self.seconds, None)] * len(failed)
        return [
            ms.builder.BuilderResult(None, f.reason)
            if isinstance(f, Failure)
            else ms.builder.BuilderResult(f, None)
            for f in built
        ]

    def run(self, inputs: list[Any]) -> list[Any]:
        case = str(self._m.case_file)
        folders = [str(item.artifact_path) for item in inputs]
        jobs = [([self._m.start, (folder, case)], self._m.timing) for folder in folders]
        limit_s = self._m.timing.limit_s
        results = self._m.device.map(tuning_job.time_mixed, jobs, limit_s)
        pairs = zip(folders, results, strict=True)
        futures = [_Future(*self._observe(folder, result)) for folder, result in pairs]
        if self.seconds > self._limit_s:
            raise _TimeIsUp
        return futures

    def _observe(self, folder: str, result: Any) -> tuple[list[float] | None, str | None]:
        reason = None
        if isinstance(result, Failure):
            reason = result.reason
        elif not result[1].exact:
            reason = "wrong bits"
        if reason is not None:
            self.found.failures.append(reason)
            self.found.curve.append((self.seconds, None))
            return None, reason
        start, mine = result
        relative = mine.low_us / start.low_us
        self.found.curve.append((self.seconds, relative))
        for name in ("equal", "final"):
            in_time = name == "final" or self.seconds <= self._equal_s
            if in_time and relative < self.found.best.get(name, (float("inf"), ""))[0]:
                self.found.best[name] = relative, folder
        return [us * 1e-6 for us in mine.times_us], None


@derived_object
class _Future(ms.runner.PyRunnerFuture):  # type: ignore[misc]
    def __init__(self, seconds: list[float] | None, reason: str | None) -> None:
        super().__init__()
        self.seconds, self.reason = seconds, reason

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        return ms.runner.RunnerResult(self.seconds, self.reason)


@derived_object
class _Builder(ms.builder.PyBuilder):  # type: ignore[misc]
    def __init__(self, build: Callable[[list[Any]], list[Any]]) -> None:
        super().__init__()
        self._build = build

    def build(self, build_inputs: list[Any]) -> list[Any]:
        return self._build(list(build_inputs))


@derived_object
class _Runner(ms.runner.PyRunner):  # type: ignore[misc]
    def __init__(self, run: Callable[[list[Any]], list[Any]]) -> None:
        super().__init__()
        self._run = run

    def run(self, runner_inputs: list[Any]) -> list[Any]:
        return self._run(list(runner_inputs))


def tune(
    func: Any, target: Target, trials: int, equal_s: float, limit_s: float, measuring: Measuring,
    seed: int = 0,
) -> Found:  # fmt: skip
    """Search until `trials` candidates are measured or `limit_s` is over.

    Parameters
    ----------
    func : PrimFunc
        The computation, not scheduled.
    target : Target
    trials : int
    equal_s : float
        Seconds that our search took, for ``Found.best["equal"]``.
    limit_s : float
        Seconds after which no further round begins; the first is measured in any case.
    measuring : Measuring
    seed : int
    """
    search = _Search(measuring, equal_s, limit_s)
    callbacks = [ms.measure_callback.AddToDatabase(), ms.measure_callback.UpdateCostModel()]
    with tempfile.TemporaryDirectory(prefix="metaschedule_") as work:
        try:
            ms.tune_tir(
                func,
                target,
                work,
                trials,
                num_trials_per_iter=min(_PER_ROUND, trials),
                builder=_Builder(search.build),
                runner=_Runner(search.run),
                measure_callbacks=callbacks,  # without the one that removes what was built
                num_tuning_cores=1,
                seed=seed + 1,
            )
        except Exception:
            if search.seconds < limit_s:  # not what `run` raised, whatever became of its type
                raise
    search.found.seconds = search.seconds
    return search.found
