"""Timing calls on a device by events in its stream, through TVM's time evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NAME = "tvm_q4.timed_function"
_NO_LIMITS = (0, 100, 0, 1, 0, "")
"""The evaluator's further parameters: no least duration, no pauses, no flush of the cache."""


def time_calls(
    function: Any, arguments: Sequence[Any], device: Any, repeats: int, calls: int = 1
) -> NDArray[np.float64]:
    """Milliseconds of a call, by the device's own clock.

    The device is idle when a measurement starts. It spans from an event before the first call to
    one behind the last one, so that it holds what the device waits for the host in between.

    Parameters
    ----------
    function : tvm_ffi.Function
        Called once more first, uncounted.
    arguments : sequence
        Of each call.
    device : tvm.runtime.Device
        On a CPU, the host's clock is read.
    repeats : int
        Measurements.
    calls : int
        Calls in each measurement, which is their mean.

    Returns
    -------
    ndarray, float64 [repeats]
    """
    import tvm

    # The evaluator takes a function of a module or a global one; kernels are neither yet.
    tvm.register_global_func(_NAME, function, override=True)
    try:
        kind, index = device.dlpack_device_type(), device.index
        make = tvm.get_global_func("runtime.RPCTimeEvaluator")
        evaluate = make(None, _NAME, kind, index, calls, repeats, *_NO_LIMITS)
        return np.frombuffer(bytes(evaluate(*arguments)), np.float64) * 1e3
    finally:
        tvm.register_global_func(_NAME, _nothing, override=True)


def _nothing() -> None:
    """Take the place of a function that was timed, which would be kept alive else."""
