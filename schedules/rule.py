"""The contract of schedule rules, and the choice of rule and parameters for a layer.

The same rule serves the default and the tuned case: `space` names its parameters and their values,
`predict` gives an analytic cost, `schedule` the finished TensorIR function for given parameters.
A rule that does not apply says so and the next one is asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from tvm.target import Target

from tvm_q4._compat import tirx
from tvm_q4.errors import UnsupportedError
from tvm_q4.schedules.kernel import channel_params
from tvm_q4.schedules.layer import Layer
from tvm_q4.tuning_logs.records import Record

Params = dict[str, int | str]


@dataclass(frozen=True)
class Choice:
    """A rule and its parameters for one layer, and where they come from."""

    rule: ScheduleRule
    params: Params
    source: str


class ScheduleRule(ABC):
    """One way to turn a fused layer into a TensorIR function."""

    name: str

    @abstractmethod
    def applies(self, layer: Layer, target: Target) -> bool:
        """Whether this rule can schedule `layer` for `target`."""

    @abstractmethod
    def space(self, layer: Layer, target: Target) -> list[Params]:
        """Every legal parameter setting; never empty where the rule applies."""

    @abstractmethod
    def predict(self, layer: Layer, target: Target, params: Params) -> float:
        """Predicted cost: microseconds on GPUs, cycles on CPUs (to compare within one layer)."""

    def costs(self, layer: Layer, target: Target, space: list[Params]) -> list[float]:
        """Predicted cost of every setting of `space`."""
        return [self.predict(layer, target, params) for params in space]

    @abstractmethod
    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> tirx.PrimFunc:
        """The function named `symbol`.

        Its arguments are inputs, constants, scratch tensors and outputs, in order.
        """

    def constants(self, layer: Layer, target: Target, params: Params) -> list[np.ndarray]:
        """Constant arguments of `schedule`'s function, in order: per-channel arrays as they are."""
        return [array for _, _, array in channel_params(layer)]

    def workspace(
        self, layer: Layer, target: Target, params: Params
    ) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of scratch tensors, which the function takes before its outputs."""
        return []

    def executes_as(self, layer: Layer, target: Target, params: Params) -> str:
        """The arithmetic that really runs, such as ``u8s8 vnni512``; for reports."""
        return self.name


def select(
    rules: list[ScheduleRule], layer: Layer, target: Target, tuned: Record | None = None
) -> Choice:
    """Pick tuned parameters where a record gives legal ones, else the best predicted.

    Parameters
    ----------
    rules : list of ScheduleRule
        In order of preference; the last applies to anything.
    layer : Layer
    target : tvm.target.Target
    tuned : Record, optional
        The best record of the layer's signature in a tuning log.

    Raises
    ------
    UnsupportedError
        If no rule applies.
    """
    for rule in rules:
        if not rule.applies(layer, target):
            continue
        space = rule.space(layer, target)
        if tuned and tuned.rule == rule.name and tuned.params in space:
            return Choice(rule, tuned.params, "measured")
        if len(space) == 1:
            return Choice(rule, space[0], "fallback")
        costs = rule.costs(layer, target, space)
        return Choice(rule, space[costs.index(min(costs))], "predicted")
    data = layer.data
    where = " ".join(str(x) for x in (target.kind.name, target.attrs.get("arch")) if x)
    msg = (
        f"no schedule rule applies to layer {layer.name!r} ({layer.kind} of {data.tag} "
        f"{list(data.shape)}) on {where}"
    )
    if "weight" in layer.ops[0].params and data.range is not None and data.range.bits > 8:
        msg += "; quantize its input to 4 or 8 bits"
    raise UnsupportedError(msg)
