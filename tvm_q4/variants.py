"""Entry sets of a library: what is compiled for one kind of device.

A CPU library has one. A CUDA library has one a family of archs, since their kernels differ; the
names of its functions and kernels end in ``_sm75``, ``_sm80`` or ``_sm90``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tvm.target import Target

from tvm_q4.cuda_target import CudaTarget
from tvm_q4.schedules.rule import ScheduleRule


@dataclass(frozen=True)
class Variant:
    """One entry set.

    Attributes
    ----------
    target : tvm.target.Target
        What its kernels are scheduled for.
    rules : list of ScheduleRule
    suffix : str
        End of its functions' names; empty for CPUs.
    family : int, optional
        CUDA family, 75, 80 or 90.
    archs : tuple of int
        Archs of the family that get machine code.
    """

    target: Target
    rules: list[ScheduleRule]
    suffix: str = ""
    family: int | None = None
    archs: tuple[int, ...] = field(default=())


def variants(target: Target | CudaTarget) -> list[Variant]:
    """The entry sets that a target asks for, oldest family first."""
    if isinstance(target, CudaTarget):
        from tvm_q4.schedules.cuda.rules import RULES as CUDA_RULES

        return [
            Variant(target.family_target(family), CUDA_RULES, f"_sm{family}", family, archs)
            for family, archs in target.families().items()
        ]
    from tvm_q4.schedules.cpu import RULES as CPU_RULES

    return [Variant(target, list(CPU_RULES))]


def describe(target: Target | CudaTarget) -> dict[str, Any]:
    """The ``target`` of a library's metadata."""
    if isinstance(target, CudaTarget):
        return target.to_json()
    return {"kind": target.kind.name} | {k: _plain(v) for k, v in target.attrs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    return str(value)
