"""Base of CUDA rules that have one parameter setting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.target import Target

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cuda.cost import predict_memory_us
from tvm_q4.schedules.cuda.device import device_of
from tvm_q4.schedules.cuda.kernel import (
    GROUP,
    CudaKernel,
    constants,
    cuda_func,
    padded_channels,
)
from tvm_q4.schedules.layer import Layer, Tensor
from tvm_q4.schedules.rule import Params, ScheduleRule

THREADS = 256


class SingleSetting(ScheduleRule):
    """A rule without parameters; subclasses name their layer kinds and emit the kernel's body."""

    kinds: tuple[str, ...] = ()

    def applies(self, layer: Layer, target: Target) -> bool:
        return layer.kind in self.kinds and target.kind.name == "cuda"

    def space(self, layer: Layer, target: Target) -> list[Params]:
        return [{}]

    def predict(self, layer: Layer, target: Target, params: Params) -> float:
        """Predicted microseconds: these kernels are bound by memory."""
        read = sum(_bytes(t) for t in layer.inputs)
        written = sum(_bytes(t) for _, t in layer.outputs)
        return predict_memory_us(read, written, device_of(target))

    def constants(self, layer: Layer, target: Target, params: Params) -> list[np.ndarray]:
        return constants(layer, padded_channels(layer))

    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> tirx.PrimFunc:
        def body() -> None:
            self.emit(CudaKernel(layer, padded_channels(layer)))

        return cuda_func(symbol, target, body)

    @abstractmethod
    def emit(self, kernel: CudaKernel) -> None:
        """Emit the function's body."""


def _bytes(tensor: Tensor) -> int:
    count = np.prod(tensor.physical_shape, dtype=np.int64)
    return int(count) * np.dtype(tensor.physical_dtype).itemsize


def launch(kernel: CudaKernel, total: int, work: Callable[[Any], None]) -> None:
    """Fill the halos, and emit ``work(thread)`` for `total` threads of the grid."""
    blocks = -(-total // THREADS)
    with T.launch_thread("blockIdx.x", blocks) as bx:
        with T.launch_thread("threadIdx.x", THREADS) as tx:
            thread = T.Bind(bx * THREADS + tx)
            kernel.fill_halos(thread, blocks * THREADS)
            with T.If(thread < total), T.Then():
                work(thread)


class PerGroup(SingleSetting):
    """A rule whose threads each make `GROUP` channels of one pixel."""

    def emit(self, kernel: CudaKernel) -> None:
        n, _, h, w = kernel.layer.shape
        groups = padded_channels(kernel.layer) // GROUP

        def work(thread: Any) -> None:
            pixel = T.Bind(thread // groups)
            place = (pixel // (h * w), pixel // w % h, pixel % w)
            self.group(kernel, place, T.Bind(thread % groups * GROUP))

        launch(kernel, n * h * w * groups, work)

    @abstractmethod
    def group(self, kernel: CudaKernel, place: tuple[Any, Any, Any], c0: Any) -> None:
        """Emit the work of one thread: channels ``c0 .. c0 + GROUP - 1`` of the pixel `place`."""
