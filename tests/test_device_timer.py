"""Timing by a device's clock, here the CPU's."""

from __future__ import annotations

import time

import tvm
import tvm_ffi

from tvm_q4.device_timer import time_calls


def test_calls_are_counted() -> None:
    seen = []
    function = tvm_ffi.convert(lambda x: seen.append(x))
    times = time_calls(function, ["argument"], tvm.cpu(), repeats=4, calls=3)
    assert times.shape == (4,)
    assert seen == ["argument"] * (1 + 4 * 3)


def test_milliseconds_of_one_call() -> None:
    function = tvm_ffi.convert(lambda: time.sleep(0.003))
    times = time_calls(function, [], tvm.cpu(), repeats=2, calls=2)
    assert (times >= 3).all()


def test_functions_are_not_kept_alive() -> None:
    class Held:
        alive = True

        def __call__(self) -> None:
            pass

        def __del__(self) -> None:
            Held.alive = False

    time_calls(tvm_ffi.convert(Held().__call__), [], tvm.cpu(), repeats=1)
    assert not Held.alive
