"""Worker processes with hard time limits, for building and timing candidates.

A candidate may crash the compiler or the process that runs it, or never return. A job therefore
runs in a process of its own kind, which is killed when the job's limit is over and started again
for the next one. Every wait here has a limit, and a worker whose parent is gone ends by itself.

TVM's own pool, on which MetaSchedule's `LocalBuilder` and `LocalRunner` stand, does not give that:
its limit is kept by a thread of the worker, which native code that holds Python's lock keeps from
running, and its parent waits for the answer without one. Besides, `LocalBuilder` starts new
processes for every batch, and importing TVM takes each of them longer than building eight
candidates; and `LocalRunner` hands back mean times only: it can neither compare a kernel's output
with the expected one nor time two kernels in turn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

START_LIMIT_S = 300.0
"""Seconds that a worker may take to start: it imports TVM, which a busy machine does slowly."""


@dataclass(frozen=True)
class Failure:
    """Why a job has no result."""

    reason: str


class Worker:
    """One process that runs jobs; parameters as of `Pool`."""

    def __init__(self, preload: Sequence[str], environment: Mapping[str, str]) -> None:
        self._preload, self._environment = list(preload), dict(environment)
        self._process: subprocess.Popen | None = None
        self._link: connection.Connection | None = None
        self._ready = False

    def launch(self) -> None:
        """Start the process if there is none, without waiting for it."""
        if self._link is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tvm_q4.tune.worker_main", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command + self._preload,
                pass_fds=(theirs.fileno(),),
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
            )
        self._link, self._ready = connection.Connection(ours.detach()), False

    def start(self) -> connection.Connection:
        """Have a process that is ready.

        Raises
        ------
        TimeoutError, EOFError, OSError
            If it does not come up.
        """
        self.launch()
        assert self._link is not None
        if not self._ready:
            if not self._link.poll(START_LIMIT_S):
                raise TimeoutError
            self._link.recv()
            self._ready = True
        return self._link

    def send(self, job: Any) -> None:
        """Hand a job to the started process."""
        assert self._link is not None
        self._link.send(job)

    def reason(self) -> str:
        """How the process ended, for messages."""
        if self._process is None:
            return "the worker is gone"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=5)
            if code < 0:
                return f"the worker process died: {signal.Signals(-code).name}"
            return f"the worker process ended with exit code {code}"
        return "the worker process stopped answering"

    def stop(self) -> None:
        """Kill the process; the next job starts a new one."""
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        self._link = self._process = None


class Pool:
    """Workers that share a queue of jobs; a context that starts and ends them.

    Parameters
    ----------
    size : int
        Number of processes.
    preload : sequence of str
        Modules that each process imports before its first job, so that a job's limit does not
        count what TVM takes to load.
    environment : mapping of str to str
        Variables set in each process.
    """

    def __init__(
        self, size: int, preload: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._workers = [Worker(preload, environment or {}) for _ in range(size)]

    def __enter__(self) -> Pool:
        for worker in self._workers:
            worker.launch()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def map(
        self, function: Callable[..., Any], jobs: Sequence[Sequence[Any]], limit_s: float
    ) -> list[Any]:
        """Results of ``function(*job)`` for each of `jobs`, in order; a `Failure` where none came.

        Parameters
        ----------
        function : callable
            Of a module that workers can import.
        jobs : sequence of argument lists
        limit_s : float
            Seconds that one job may take.
        """
        results: list[Any] = [Failure("not run")] * len(jobs)
        waiting = list(range(len(jobs)))[::-1]
        busy: dict[connection.Connection, tuple[Worker, int, float]] = {}
        idle = list(self._workers)
        try:
            while waiting or busy:
                while waiting and idle:
                    worker, index = idle.pop(), waiting.pop()
                    link = self._begin(worker, (function, jobs[index], limit_s))
                    if isinstance(link, Failure):
                        results[index] = link
                        idle.append(worker)
                        continue
                    busy[link] = (worker, index, time.monotonic() + limit_s)
                self._collect(busy, idle, results, limit_s)
        except BaseException:
            for worker, _, _ in busy.values():
                worker.stop()
            raise
        return results

    @staticmethod
    def _begin(worker: Worker, job: Any) -> connection.Connection | Failure:
        try:
            link = worker.start()
            worker.send(job)
        except TimeoutError:
            worker.stop()
            return Failure(f"a worker process did not start within {START_LIMIT_S:.0f} s")
        except (EOFError, OSError):
            reason = worker.reason()
            worker.stop()
            return Failure(reason)
        return link

    @staticmethod
    def _collect(
        busy: dict[connection.Connection, tuple[Worker, int, float]],
        idle: list[Worker],
        results: list[Any],
        limit_s: float,
    ) -> None:
        """Take what workers answer until the first limit is over; end those beyond theirs."""
        if not busy:
            return
        first = min(deadline for _, _, deadline in busy.values())
        ready = connection.wait(list(busy), max(0.0, first - time.monotonic()))
        for link in ready:
            assert isinstance(link, connection.Connection)
            worker, index, _ = busy.pop(link)
            try:
                results[index] = link.recv()
            except (EOFError, OSError):
                results[index] = Failure(worker.reason())
                worker.stop()
            idle.append(worker)
        now = time.monotonic()
        for link in [k for k, (_, _, deadline) in busy.items() if deadline <= now]:
            worker, index, _ = busy.pop(link)
            worker.stop()
            results[index] = Failure(f"stopped after its limit of {limit_s:g} s")
            idle.append(worker)
