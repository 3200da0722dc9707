"""Requantize, residual add and dequantize that no anchor precedes, on CUDA."""

from __future__ import annotations

from typing import Any

from tvm_q4.schedules.cuda.kernel import GROUP, CudaKernel, Row
from tvm_q4.schedules.cuda.single_setting import PerGroup


class Elementwise(PerGroup):
    """Requantize, residual add and dequantize without an anchor."""

    name = "cuda.elementwise"
    kinds = ("elementwise",)

    def group(self, kernel: CudaKernel, place: tuple[Any, Any, Any], c0: Any) -> None:
        kernel.finish([Row(place)], c0, GROUP)
