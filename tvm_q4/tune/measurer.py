"""What runs built candidates: the interface, and this machine's own device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tvm_q4.errors import TargetError
from tvm_q4.tune import time_job
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.time_job import Sample, Timing
from tvm_q4.tune.workers import START_LIMIT_S, Failure, Pool


class Measurer(Protocol):
    """A device that candidates are checked and timed on."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What records say of it: ``device`` (its name), and further keys."""
        ...

    def measure(
        self, case_file: Path, groups: Sequence[Sequence[Kernel]], timing: Timing
    ) -> list[list[Sample] | Failure]:
        """Check and time groups of candidates of one layer; each group is timed in turn.

        Parameters
        ----------
        case_file : Path
            Inputs and expected outputs, as `Case.save` wrote them.
        groups : sequence of sequences of Kernel
        timing : Timing

        Returns
        -------
        list of (list of Sample) or Failure
            For each group, the samples of its kernels in order, or why there are none. It returns
            within the sum of all groups' limits, and the time of a start.
        """
        ...


class LocalMeasurer:
    """The CPU or the first GPU of this machine, in one process that is replaced when it dies.

    Parameters
    ----------
    kind : {"cpu", "cuda"}
    threads : int, optional
        Threads of CPU kernels; as many as a library takes where None.
    """

    def __init__(self, kind: str = "cpu", threads: int | None = None) -> None:
        self._kind = kind
        environment = {} if threads is None else {"TVM_NUM_THREADS": str(threads)}
        self._pool = Pool(1, [time_job.__name__], environment)

    def __enter__(self) -> LocalMeasurer:
        self._pool.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """See `Measurer.facts`.

        Raises
        ------
        TargetError
            If the device cannot be used.
        """
        facts = self._pool.map(time_job.describe_device, [(self._kind,)], START_LIMIT_S)[0]
        if isinstance(facts, Failure):
            raise TargetError(f"nothing can be measured here: {facts.reason}")
        return facts

    def measure(
        self, case_file: Path, groups: Sequence[Sequence[Kernel]], timing: Timing
    ) -> list[list[Sample] | Failure]:
        """See `Measurer.measure`."""
        jobs = [
            ([str(kernel.folder) for kernel in group], str(case_file), timing, self._kind)
            for group in groups
        ]
        return self._pool.map(time_job.time_group, jobs, timing.limit_s)
