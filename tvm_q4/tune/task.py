"""What is tuned: the distinct signatures of a model whose rule has parameters to choose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.target import Target

from tvm_q4.errors import InputError
from tvm_q4.relay_passes.lower_to_tir import LoweredCall
from tvm_q4.relay_passes.pipeline import to_kernels
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.rule import Params, ScheduleRule
from tvm_q4.targets import target_arch
from tvm_q4.variants import Variant


def params_key(params: dict[str, Any]) -> str:
    """Text that is equal for equal parameters."""
    return json.dumps(params, sort_keys=True)


@dataclass(frozen=True, eq=False)
class Task:
    """One signature with everything that decides its kernel.

    Attributes
    ----------
    index : int
        Its number in the model, from 0.
    layers : tuple of str
        The layers that share it, in order.
    signature, arch : str
    layer : Layer
        The first of the layers, with its weights.
    fused : tvm.IRModule
        Holds the layer as a function of Relax.
    rule : ScheduleRule
    target : tvm.target.Target
    suffix : str
        End of the kernel's name (`Variant.suffix`).
    space : list of dict
        Parameter settings; those that break a hard limit (registers, shared memory, alignment) are
        not among them.
    costs : list of float
        The rule's prediction for each: microseconds on GPUs, cycles on CPUs.
    """

    index: int
    layers: tuple[str, ...]
    signature: str
    arch: str
    layer: Layer
    fused: tvm.IRModule
    rule: ScheduleRule
    target: Target
    suffix: str
    space: list[Params]
    costs: list[float]

    @property
    def name(self) -> str:
        """Name of its first layer, with the family for CUDA."""
        return f"{self.layers[0]}{self.suffix}"

    @property
    def start(self) -> int:
        """Index in `space` of the best prediction: what is compiled without a log."""
        return self.costs.index(min(self.costs))

    @property
    def symbol(self) -> str:
        """Name of a candidate's function."""
        return f"q4_candidate{self.suffix}"


def extract_tasks(fused: tvm.IRModule, variants: Sequence[Variant]) -> list[Task]:
    """Tasks of a module of stage "fused", in the order of its layers, for every entry set.

    Raises
    ------
    UnsupportedError
        If a layer has no rule for a target.
    """
    tasks: list[Task] = []
    for variant in variants:
        target = variant.target
        lowered = to_kernels(fused, target, variant.rules, lambda _: None, suffix=variant.suffix)
        for signature, calls in _by_signature(lowered.calls).items():
            layer, rule = calls[0].layer, calls[0].choice.rule
            space = rule.space(layer, target)
            if len(space) > 1:
                names = tuple(call.layer.name for call in calls)
                costs = rule.costs(layer, target, space)
                arch = target_arch(target)
                tasks.append(
                    Task(
                        len(tasks),
                        names,
                        signature,
                        arch,
                        layer,
                        lowered.fused,
                        rule,
                        target,
                        variant.suffix,
                        space,
                        costs,
                    )
                )
    return tasks


def _by_signature(calls: list[LoweredCall]) -> dict[str, list[LoweredCall]]:
    groups: dict[str, list[LoweredCall]] = {}
    for call in calls:
        groups.setdefault(call.signature, []).append(call)
    return groups


def choose_tasks(tasks: list[Task], text: str) -> list[Task]:
    """Those of `tasks` that a user named.

    Parameters
    ----------
    tasks : list of Task
    text : str
        ``all``, or task numbers and layer names with commas between.

    Raises
    ------
    InputError
        If a number or a name stands for none.
    """
    if text.strip() == "all":
        return tasks
    chosen: set[int] = set()
    for part in (p.strip() for p in text.split(",")):
        found = [t.index for t in tasks if part in t.layers or part in (t.name, str(t.index))]
        if not found:
            msg = f"task {part!r} does not exist; see --tasks list for the {len(tasks)} there are"
            raise InputError(msg)
        chosen |= set(found)
    return [t for t in tasks if t.index in chosen]
