"""Kernels and cases of the tasks: what is built, kept, run and thrown away."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from tvm_q4.tune.builder import Builder
from tvm_q4.tune.case import make_case
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.measurer import Measurer
from tvm_q4.tune.task import Task
from tvm_q4.tune.time_job import Sample, Timing
from tvm_q4.tune.workers import Failure


class Candidates:
    """Builds and measures settings of tasks.

    Parameters
    ----------
    builder : Builder
    measurer : Measurer
    folder : Path
        For cases; removed by whoever made it.
    seed : int
        Of the cases' inputs.
    """

    def __init__(self, builder: Builder, measurer: Measurer, folder: Path, seed: int = 0) -> None:
        self.measurer = measurer
        self._builder, self._folder, self._seed = builder, folder, seed
        self._kept: dict[Task, dict[int, Kernel]] = {}

    def kernels(self, task: Task, indices: Sequence[int]) -> dict[int, Kernel | Failure]:
        """Kernels of settings of a task; those that were kept are not built again."""
        kept = self._kept.setdefault(task, {})
        wanted = list(dict.fromkeys(indices))
        missing = [i for i in wanted if i not in kept]
        built = self._builder.build(task, [task.space[i] for i in missing]) if missing else []
        found: dict[int, Kernel | Failure] = dict(zip(missing, built, strict=True))
        kept |= {i: kernel for i, kernel in found.items() if isinstance(kernel, Kernel)}
        return {i: kept[i] if i in kept else found[i] for i in wanted}

    def keep(self, task: Task, indices: Collection[int]) -> None:
        """Discard a task's kernels but these."""
        kept = self._kept.get(task, {})
        for i in [i for i in kept if i not in indices]:
            kept.pop(i).discard()

    def measure(
        self, task: Task, groups: Sequence[Sequence[Kernel]], timing: Timing
    ) -> list[list[Sample] | Failure]:
        """Measure groups; what failed is tried once more, since devices and workers die."""
        case_file = self._case_file(task)
        results = self.measurer.measure(case_file, groups, timing)
        failed = [i for i, r in enumerate(results) if isinstance(r, Failure)]
        if failed:
            again = self.measurer.measure(case_file, [groups[i] for i in failed], timing)
            for i, result in zip(failed, again, strict=True):
                results[i] = result
        return results

    def _case_file(self, task: Task) -> Path:
        path = self._folder / f"case{task.index}.npz"
        if not path.exists():
            make_case(task.fused, task.layer, self._seed).save(path)
        return path
