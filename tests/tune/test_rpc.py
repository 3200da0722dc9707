"""Devices behind a tracker: what is refused, and two servers on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tune import fakes
from tvm_q4.errors import InputError, TargetError
from tvm_q4.targets import cpu_target
from tvm_q4.tune import rpc_measurer, tune_model
from tvm_q4.tune.builder import Builder
from tvm_q4.tune.candidates import Candidates
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.rpc_measurer import RpcMeasurer, parse_rpc
from tvm_q4.tune.time_job import Timing
from tvm_q4.tune.workers import Failure

TRACKER = {"TVM_TRACKER_HOST": "board", "TVM_TRACKER_PORT": "9190"}


@pytest.mark.parametrize(
    ("text", "environment", "found"),
    [
        ("127.0.0.1:9190/t4", {}, ("127.0.0.1", 9190, "t4")),
        ("[::1]:9190/a/b", {}, ("::1", 9190, "a/b")),
        ("t4", TRACKER, ("board", 9190, "t4")),
        ("host:1/k", TRACKER, ("host", 1, "k")),
        ("t4", TRACKER | {"TVM_TRACKER_HOST": "::1"}, ("::1", 9190, "t4")),
    ],
)
def test_trackers_and_keys(text: str, environment: dict[str, str], found: object) -> None:
    assert parse_rpc(text, environment) == found


@pytest.mark.parametrize(
    "text", ["", "t4", "host:9190", "host:9190/", "host:0/k", "host:65536/k", ":9190/k", "a:b/c"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"HOST:PORT/KEY") as caught:
        parse_rpc(text, {})
    assert "\n" not in str(caught.value)


def test_no_tracker_is_said_at_once(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    begin = time.monotonic()
    address = f"127.0.0.1:{free_port()}/k"
    with pytest.raises(TargetError, match=r"no TVM tracker answers at 127\.0\.0\.1:"):
        tune_model(fakes.network(), log=tmp_path / "log.jsonl", rpc=address)
    assert time.monotonic() - begin < 10 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_listens_and_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_measurer, "_ANSWER_LIMIT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = ("127.0.0.1", silent.getsockname()[1], "k")
        with pytest.raises(TargetError, match="does not answer as a TVM tracker: stopped after"):
            RpcMeasurer(server)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running(module: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """One of TVM's programs, with the processes that it starts, until the end of the context."""
    port = str(free_port())
    command = [sys.executable, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1"]
    command += ["--port", port, "--port-end", str(int(port) + 1), *arguments]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@pytest.fixture
def tracker() -> Iterator[tuple[str, int]]:
    with running("rpc_tracker") as process:
        assert isinstance(process.args, list)
        host, port = "127.0.0.1", int(process.args[6])
        wait_until(lambda: not socket.socket().connect_ex((host, port)))
        yield host, port


def wait_until(condition, limit_s: float = 90.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "a program of TVM did not come up"
        time.sleep(0.2)


@contextlib.contextmanager
def devices(tracker: tuple[str, int], count: int) -> Iterator[list[subprocess.Popen]]:
    from tvm_q4.tune.rpc_job import count_devices

    host, port = tracker
    with contextlib.ExitStack() as stack:
        name = f"{host}:{port}"
        found = [
            stack.enter_context(running("rpc_server", "--tracker", name, "--key", "k"))
            for _ in range(count)
        ]
        wait_until(lambda: count_devices((host, port, "k")) == count)
        yield found


@pytest.mark.slow
def test_two_devices_tune_a_layer(tracker: tuple[str, int], tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    log = tmp_path / "log.jsonl"
    host, port = tracker
    with devices(tracker, 2):
        with pytest.raises(TargetError, match="has no device of key 'other'"):
            RpcMeasurer((host, port, "other"))
        result = tune_model(
            fakes.network(), log=log, trials=4, tasks="c", threads=1, rpc=f"{host}:{port}/k"
        )
    assert result["measured"] == 4 and result["tasks"][0]["confirmed"]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(records) > 4 and all(r["checked"] and r["threads"] == 1 for r in records)
    assert {r["device"] for r in records} == {result["device"]}


@pytest.mark.slow
def test_a_device_that_dies_in_a_batch_leaves_it_to_the_other_one(
    tracker: tuple[str, int], tmp_path: Path
) -> None:
    task = fakes.tasks(cpu_target())[1][0]
    timing = Timing(rounds=20, burst_ms=50.0, limit_s=60.0)
    with devices(tracker, 2) as (first, second), Builder(tmp_path, 1) as builder:
        built = builder.build(task, task.space[:3])
        groups = [[kernel] for kernel in built if isinstance(kernel, Kernel)]
        with RpcMeasurer((*tracker, "k"), threads=1) as measurer:
            candidates = Candidates(builder, measurer, tmp_path)
            assert not any(
                isinstance(r, Failure) for r in candidates.measure(task, groups, Timing(rounds=1))
            )
            killer = threading.Timer(1.0, end, [first])
            killer.start()
            begin = time.monotonic()
            found = candidates.measure(task, groups, timing)
            killer.join()
            assert time.monotonic() - begin < 100
            assert all(not isinstance(r, Failure) and r[0].exact for r in found)
            end(second)
            wait_until(lambda: _is_gone(measurer))
            failed = candidates.measure(task, groups, timing)
            assert all(isinstance(r, Failure) and "no device" in r.reason for r in failed)


@pytest.mark.slow
def test_a_device_that_stops_answering_is_reported_in_time(
    tracker: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = fakes.tasks(cpu_target())[1][0]
    with devices(tracker, 1) as (device,), Builder(tmp_path, 1) as builder:
        built = builder.build(task, task.space[:3])
        groups = [[kernel] for kernel in built if isinstance(kernel, Kernel)]
        with RpcMeasurer((*tracker, "k"), threads=1) as measurer:
            os.killpg(device.pid, signal.SIGSTOP)  # its connection to the tracker stays
            monkeypatch.setattr(rpc_measurer, "_DEVICE_LIMIT_S", 2.0)
            begin = time.monotonic()
            found = Candidates(builder, measurer, tmp_path).measure(task, groups, Timing())
            assert time.monotonic() - begin < 30
            assert all(isinstance(r, Failure) and "no device of key" in r.reason for r in found)


def _is_gone(measurer: RpcMeasurer) -> bool:
    try:
        measurer._count()
    except TargetError:
        return True
    return False
