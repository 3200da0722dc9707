"""Building candidates of a task in worker processes."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

from tvm_q4.cuda_target import from_tvm
from tvm_q4.schedules.rule import Params
from tvm_q4.tune import build_job
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.task import Task
from tvm_q4.tune.workers import Failure, Pool

BUILD_LIMIT_S = 120.0


def usable_cpus() -> int:
    """CPUs that this process may run on, at most 8: builds at a time."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


class Builder:
    """Builds candidates side by side; a context that ends its processes.

    Parameters
    ----------
    folder : Path
        Where kernels go, one folder each.
    workers : int, optional
        Processes; `usable_cpus` where None.
    limit_s : float
        Seconds that one candidate may take.
    """

    def __init__(
        self, folder: Path, workers: int | None = None, limit_s: float = BUILD_LIMIT_S
    ) -> None:
        self._folder, self._limit_s = folder, limit_s
        self._pool = Pool(workers or usable_cpus(), [build_job.__name__])
        self._numbers = itertools.count()
        self._task_files: dict[Task, str] = {}

    def __enter__(self) -> Builder:
        self._pool.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def build(self, task: Task, candidates: Sequence[Params]) -> list[Kernel | Failure]:
        """Kernels of parameter settings of a task, in order.

        Raises
        ------
        EnvironmentMismatch, TargetError
            If there is no nvcc for a CUDA target.
        """
        if task.target.kind.name == "cuda":
            from tvm_q4.library.nvcc import find_nvcc

            find_nvcc(from_tvm(task.target, str(task.target)).archs)
        jobs = [
            (self._task_file(task), params, str(self._folder / f"kernel{next(self._numbers)}"))
            for params in candidates
        ]
        built = self._pool.map(build_job.build, jobs, self._limit_s)
        return [f if isinstance(f, Failure) else Kernel(Path(f)) for f in built]

    def _task_file(self, task: Task) -> str:
        """The file that hands a task to the workers."""
        if task not in self._task_files:
            path = self._folder / f"task{len(self._task_files)}.pkl"
            path.write_bytes(pickle.dumps((task.layer, task.rule, task.target, task.symbol)))
            self._task_files[task] = str(path)
        return self._task_files[task]
