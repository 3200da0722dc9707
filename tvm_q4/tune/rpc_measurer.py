"""Devices elsewhere, behind TVM's own tracker and RPC servers.

Candidates are built here and uploaded; a server needs apache-tvm and nothing of tvm-q4. Where the
tracker runs, and on each device::

    python -m tvm.exec.rpc_tracker --host 127.0.0.1 --port 9190 --port-end 9199
    python -m tvm.exec.rpc_server --host 127.0.0.1 --tracker 127.0.0.1:9190 --key KEY

All devices of one key must be of one kind: they measure groups of candidates side by side, and
records name the one that answered first. For CUDA, start the servers with
``--load-library .../tvm/lib/libtvm_runtime_cuda.so`` where ``import tvm`` does not load it.

TVM's RPC knows no passwords and runs whatever is uploaded, and both programs listen on all
interfaces unless told otherwise. Hence the addresses above: keep them on loopback, and reach other
machines through ``ssh -L`` and ``-R``, or a network that is yours alone.

A candidate that crashes takes its server with it (TVM 0.27's server does not survive the end of a
session's process by a signal); groups go on with the devices that are left.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError, TargetError
from tvm_q4.tune import rpc_job
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.rpc_job import Server
from tvm_q4.tune.time_job import Sample, Timing
from tvm_q4.tune.workers import Failure, Pool

_CONNECT_LIMIT_S = 5.0
_ANSWER_LIMIT_S = 20.0
_DEVICE_LIMIT_S = 60.0
"""Seconds that a device may take to become free, others using it too, and to describe itself."""

_MOST_DEVICES = 32


def parse_rpc(text: str, environment: Mapping[str, str] | None = None) -> Server:
    """Tracker and key that a user named.

    Parameters
    ----------
    text : str
        ``HOST:PORT/KEY``, an IPv6 host in brackets; or ``KEY`` alone, with the tracker of TVM's
        variables ``TVM_TRACKER_HOST`` and ``TVM_TRACKER_PORT``.
    environment : mapping, optional
        This process's where None.

    Raises
    ------
    InputError
        If it has another form, or the variables are needed and missing.
    """
    environment = os.environ if environment is None else environment
    if re.fullmatch(r"[^:/\s]+", text):
        host, port = (environment.get(f"TVM_TRACKER_{name}", "") for name in ("HOST", "PORT"))
        if not host or not port:
            msg = f"rpc {text!r} names no tracker; give HOST:PORT/KEY"
            raise InputError(f"{msg}, or set TVM_TRACKER_HOST and TVM_TRACKER_PORT")
        text = f"[{host}]:{port}/{text}" if ":" in host else f"{host}:{port}/{text}"
    match = re.fullmatch(r"(?:\[([^\]\s]+)\]|([^:/\s\[\]]+)):(\d{1,5})/(\S+)", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise InputError(f"rpc {text!r} is not HOST:PORT/KEY, such as 127.0.0.1:9190/t4")
    return match[1] or match[2], int(match[3]), match[4]


class RpcMeasurer:
    """Devices of one key; one worker process here for each, which is killed when it is late.

    Parameters
    ----------
    server : tuple
        Host and port of the tracker, key of the devices; see `parse_rpc`.
    kind : {"cpu", "cuda"}
    threads : int, optional
        Threads of CPU kernels; as many as the device takes where None.

    Raises
    ------
    TargetError
        If the tracker does not answer, or has no device that does.
    """

    def __init__(self, server: Server, kind: str = "cpu", threads: int | None = None) -> None:
        self._server, self._kind, self._threads = server, kind, threads
        self._control = Pool(1, [rpc_job.__name__])
        self._pool = Pool(0)
        try:
            count = self._count()
            self._pool = Pool(min(count, _MOST_DEVICES), [rpc_job.__name__])
            self.facts: Mapping[str, Any] = self._describe()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> RpcMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.__exit__()
        self._pool.__exit__()

    def measure(
        self, case_file: Path, groups: Sequence[Sequence[Kernel]], timing: Timing
    ) -> list[list[Sample] | Failure]:
        """See `Measurer.measure`; a group whose device dies is a `Failure`."""
        try:
            self._count()
            self._describe()
        except TargetError as error:  # without a device, each group would wait for one in vain
            return [Failure(str(error)) for _ in groups]
        jobs = [
            (
                self._server,
                [str(kernel.folder) for kernel in group],
                str(case_file),
                timing,
                self._kind,
                self._threads,
            )
            for group in groups
        ]
        return self._pool.map(rpc_job.time_group, jobs, timing.limit_s + _DEVICE_LIMIT_S)

    def _count(self) -> int:
        """Number of devices; TargetError where there is none."""
        host, port, key = self._server
        (found,) = self._control.map(rpc_job.count_devices, [(self._server,)], _ANSWER_LIMIT_S)
        if isinstance(found, Failure):
            msg = f"what listens at {host}:{port} does not answer as a TVM tracker: {found.reason}"
            raise TargetError(f"{msg}; {_START}")
        if not found:
            msg = f"the tracker at {host}:{port} has no device of key {key!r}"
            raise TargetError(f"{msg}; start `python -m tvm.exec.rpc_server --key {key}` on one")
        return int(found)

    def _describe(self) -> dict[str, Any]:
        jobs = [(self._server, self._kind, _DEVICE_LIMIT_S)]
        (facts,) = self._control.map(rpc_job.describe_device, jobs, _DEVICE_LIMIT_S)
        if isinstance(facts, Failure):
            raise TargetError(f"no device of key {self._server[2]!r} answers: {facts.reason}")
        if self._threads is not None and self._kind == "cpu":
            facts["threads"] = self._threads
        return dict(facts)


_START = "start `python -m tvm.exec.rpc_tracker`, or check HOST:PORT"


def check_listening(server: Server) -> None:
    """Say at once that nobody is there; TVM would go on trying for a minute.

    Raises
    ------
    TargetError
        If nothing listens at the tracker's address.
    """
    host, port, _ = server
    try:
        socket.create_connection((host, port), _CONNECT_LIMIT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        msg = f"no TVM tracker answers at {host}:{port}: {reason}; {_START}"
        raise TargetError(msg) from None
