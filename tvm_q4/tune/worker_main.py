"""The program that a worker process runs: jobs from a socket, until its other end is closed."""

from __future__ import annotations

import importlib
import signal
import sys
from multiprocessing import connection

from tvm_q4.tune.workers import Failure

_GRACE_S = 30
"""Seconds behind a job's limit after which a worker whose parent is gone ends itself."""


def serve(link: connection.Connection) -> None:
    """Run jobs until the parent closes the connection."""
    link.send("ready")
    while True:
        try:
            function, arguments, limit_s = link.recv()
        except EOFError:
            return
        # The signal's default action ends the process even where native code holds Python's lock.
        signal.alarm(int(limit_s) + _GRACE_S)
        try:
            result = function(*arguments)
        except Exception as error:  # whatever TVM or a rule raises is the job's result
            result = Failure(_line(error))
        signal.alarm(0)
        link.send(result)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    serve(connection.Connection(int(sys.argv[1])))
