"""Jobs in processes: results, errors, crashes, limits."""

from __future__ import annotations

import operator
import os
import signal
import time

from tvm_q4.tune.workers import Failure, Pool


def test_results_come_in_order_and_processes_stay() -> None:
    with Pool(2) as pool:
        assert pool.map(pow, [(i, 2) for i in range(9)], 30) == [i * i for i in range(9)]
        pids = set(pool.map(os.getpid, [()] * 4, 30))
        assert pids >= set(pool.map(os.getpid, [()] * 4, 30)) and os.getpid() not in pids
        assert pool.map(pow, [], 30) == []


def test_errors_crashes_and_limits_are_failures_of_their_job_alone() -> None:
    jobs = [
        (operator.truediv, (1, 0)),
        (os.kill, (0, 0)),
        (os._exit, (3,)),
        (time.sleep, (60,)),
        (signal.raise_signal, (signal.SIGSEGV,)),
        (operator.add, (1, 2)),
    ]
    begin = time.monotonic()
    with Pool(2, environment={"TVM_NUM_THREADS": "1"}) as pool:
        found = pool.map(operator.call, [(f, *args) for f, args in jobs], 1.0)
        assert pool.map(os.getenv, [("TVM_NUM_THREADS",)], 30) == ["1"]
    assert found[0] == Failure("ZeroDivisionError: division by zero")
    assert found[2] == Failure("the worker process ended with exit code 3")
    assert found[3] == Failure("stopped after its limit of 1 s")
    assert found[4] == Failure("the worker process died: SIGSEGV")
    assert found[1] is None and found[5] == 3
    assert time.monotonic() - begin < 50


def test_a_module_that_cannot_be_imported_is_a_failure() -> None:
    with Pool(1, ["tvm_q4.no_such_module"]) as pool:
        assert pool.map(pow, [(1, 2)], 30) == [Failure("the worker process ended with exit code 1")]


def test_workers_end_with_their_pool() -> None:
    with Pool(1) as pool:
        (pid,) = pool.map(os.getpid, [()], 30)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    raise AssertionError("the worker is still there")
