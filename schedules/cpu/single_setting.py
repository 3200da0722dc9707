"""Base of CPU rules that have one parameter setting."""

from __future__ import annotations

from abc import abstractmethod

from tvm.target import Target

from tvm_q4._compat import tirx
from tvm_q4.schedules.kernel import prim_func
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.rule import Params, ScheduleRule


class SingleSetting(ScheduleRule):
    """A rule without parameters; subclasses name their layer kinds and emit the kernel's body."""

    kinds: tuple[str, ...] = ()

    def applies(self, layer: Layer, target: Target) -> bool:
        return layer.kind in self.kinds and target.kind.name == "llvm"

    def space(self, layer: Layer, target: Target) -> list[Params]:
        return [{}]

    def predict(self, layer: Layer, target: Target, params: Params) -> float:
        n, c, h, w = layer.shape
        return float(n * c * h * w)

    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> tirx.PrimFunc:
        return prim_func(symbol, lambda: self.emit(layer))

    @abstractmethod
    def emit(self, layer: Layer) -> None:
        """Emit the function's body."""
