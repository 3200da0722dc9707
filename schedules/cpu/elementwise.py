"""Requantize, residual add and dequantize that no anchor precedes, on CPUs."""

from __future__ import annotations

from tvm_q4._compat import T
from tvm_q4.schedules.cpu.single_setting import SingleSetting
from tvm_q4.schedules.kernel import Kernel
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.layout import LANES


class Elementwise(SingleSetting):
    """Requantize, residual add and dequantize without an anchor."""

    name = "cpu.elementwise"
    kinds = ("elementwise",)

    def emit(self, layer: Layer) -> None:
        kernel = Kernel(layer)
        n, c, h, w = layer.shape
        kernel.fill_halos()
        with T.parallel(0, n * h) as fused:
            with T.grid(w, -(-c // LANES)) as (col, block):
                kernel.finish(None, fused // h, fused % h, col, block * LANES)
