"""Checking and timing candidates on a device behind TVM's tracker, in a worker process."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvm import rpc

from tvm_q4.tune.case import Case
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.time_job import Sample, Timing, measure

Server = tuple[str, int, str]
"""Host and port of a tracker, and the key of its devices."""


def count_devices(server: Server) -> int:
    """Number of devices that the tracker knows under the key, those in use included."""
    host, port, key = server
    tracker = rpc.connect_tracker(host, port)
    try:
        servers = tracker.summary()["server_info"]
    finally:
        tracker.close()
    return sum(entry["key"] == f"server:{key}" for entry in servers)


def describe_device(server: Server, kind: str, limit_s: float) -> dict[str, Any]:
    """What records say of a device: ``device``, and ``device_arch`` or ``threads``.

    CPUs do not tell their model through TVM; the name that LLVM has for them stands for it, or the
    key.
    """
    session = _request(server, limit_s)
    if kind == "cuda":
        gpu = session.cuda(0)
        if not gpu.exist:
            raise RuntimeError(f"the device of key {server[2]!r} shows no GPU")
        major, minor = str(gpu.compute_version).split(".")
        return {"device": str(gpu.device_name), "device_arch": 10 * int(major) + int(minor)}
    threads = int(session.get_function("runtime.NumThreads")())
    return {"device": _cpu_name(session) or f"CPU of key {server[2]}", "threads": threads}


def _cpu_name(session: Any) -> str:
    try:
        return str(session.get_function("target.llvm_get_system_cpu")())
    except (AttributeError, RuntimeError):  # a server with the runtime only
        return ""


def time_group(
    server: Server,
    folders: Sequence[str],
    case_file: str,
    timing: Timing,
    kind: str,
    threads: int | None,
) -> list[Sample]:
    """Check and time candidates of one layer on the next device that is free.

    Parameters
    ----------
    server : tuple
        Host, port, key.
    folders : sequence of str
        Of `Kernel`, uploaded and timed in turn.
    case_file : str
        Written by `Case.save`.
    timing : Timing
        The server ends the session after its limit, even where this process was killed.
    kind : {"cpu", "cuda"}
    threads : int, optional
        Threads of CPU kernels.
    """
    session = _request(server, timing.limit_s)
    if threads is not None and kind == "cpu":
        session.get_function("runtime.config_threadpool")(1, threads)
    kernels = [Kernel(Path(folder)) for folder in folders]
    case = Case.load(Path(case_file))

    def load(library: Path) -> Any:
        name = f"{uuid.uuid4().hex}.so"  # all kernels are files of one name
        session.upload(str(library), name)
        return session.load_module(name)

    return measure(kernels, case, timing, session.device(kind, 0), load)


def _request(server: Server, limit_s: float) -> Any:
    host, port, key = server
    return rpc.connect_tracker(host, port).request(key, session_timeout=limit_s)
