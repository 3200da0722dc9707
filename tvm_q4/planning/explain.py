"""What a plan did and why: what each lowered layer gave, the binding limits, the next step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from tvm_q4.planning.costs import ACTIVATION, SENSITIVITY, Network
from tvm_q4.planning.limits import CHOICES, FRACTIONS, Limit
from tvm_q4.planning.problem import ceiling, exact

_SMALL = Fraction(1, 10**12)
"""Stands for a budget of nothing, of which a share cannot be told."""


def explain(network: Network, limits: Sequence[Limit], chosen: Sequence[int]) -> dict[str, Any]:
    """Return the explanation of a plan.

    Parameters
    ----------
    network : Network
    limits : sequence of Limit
    chosen : sequence of int
        Index into `CHOICES` by layer.

    Returns
    -------
    dict
        ``limits``: name, value, cost, budget, used, slack, and whether it is ``binding``: a change
        of one layer, or of one group of ties, that lowers the sensitivity would break it.
        ``lowered``: for each layer below 8 bits what that adds to the sensitivity and what it saves
        (None where the table has no value at 8). ``next_step``: the change of one layer or group
        with less sensitivity that needs the least more of the budgets, None where nothing is left
        to raise. ``references``: sensitivity and costs of all layers at 8 and at 4.
    """
    uses = [_Use(network, limit, chosen) for limit in limits]
    changes = [_Change(network, uses, chosen, new) for new in _changes(network, chosen)]
    better = [change for change in changes if change.sensitivity < 0]
    broken = {name for change in better for name in change.missing}
    return {
        "limits": [use.to_dict(use.limit.name in broken) for use in uses],
        "lowered": [
            _lowered(network, layer, choice)
            for layer, choice in enumerate(chosen)
            if CHOICES[choice] != "8"
        ],
        "next_step": min(better, key=_Change.order).to_dict() if better else None,
        "references": {bits: reference(network, network.uniform(bits)) for bits in ("8", "4")},
    }


def reference(network: Network, chosen: Sequence[int]) -> dict[str, Any] | None:
    """Return sensitivity and costs of some choices, None where the table lacks a value."""
    sensitivity = network.value(SENSITIVITY, chosen)
    if sensitivity is None:
        return None
    values = {name: network.value(name, chosen) for name in network.costs}
    costs = {name: number(value) for name, value in values.items() if value is not None}
    return {"sensitivity": float(sensitivity), "costs": costs}


def number(value: Fraction) -> int | float:
    """Return an integer where it is one, else the nearest float."""
    return value.numerator if value.denominator == 1 else float(value)


def bits_of(choice: int) -> int | str:
    """Return what the answer calls a choice: 8, 4 or "w4a8"."""
    return int(CHOICES[choice]) if CHOICES[choice].isdigit() else CHOICES[choice]


class _Use:
    """How much of a limit a plan uses."""

    def __init__(self, network: Network, limit: Limit, chosen: Sequence[int]) -> None:
        self.limit, self.budget = limit, network.budget(limit)
        self.used = network.quantities[limit.cost].of(chosen, ACTIVATION)
        self.ends = network.span(limit.cost) if limit.name in FRACTIONS else None

    def missing(self, more: Fraction) -> Fraction:
        """What the budget lacks if the cost grows; 0 where it suffices."""
        used = self.used + more
        return used - self.budget if used > ceiling(self.budget) else Fraction(0)

    def raised(self, missing: Fraction) -> dict[str, Any]:
        """The budget that a change needs: how much more, and the fraction that gives it."""
        out: dict[str, Any] = {"more": number(missing)}
        if self.ends is not None and self.ends[0] != self.ends[1]:
            low, high = self.ends
            out["fraction"] = float((self.budget + missing - low) / (high - low))
        return out

    def to_dict(self, binding: bool) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "name": self.limit.name,
            "value": float(self.limit.value),
            "cost": self.limit.cost,
            "budget": number(self.budget),
            "used": number(self.used),
            "slack": number(max(Fraction(0), self.budget - self.used)),
            "binding": binding,
        }


def _lowered(network: Network, layer: int, choice: int) -> dict[str, Any]:
    """What one layer gave and saved against 8 bits, boundaries left out."""
    eight = CHOICES.index("8")
    out: dict[str, Any] = {"layer": network.table.layers[layer].name, "bits": bits_of(choice)}
    grown: dict[str, Fraction | None] = {}
    for name, quantity in network.quantities.items():
        before, after = (quantity.values[layer][c] for c in (eight, choice))
        known = None if before is None or after is None else exact(after) - exact(before)
        grown[name] = known
    added = grown.pop(SENSITIVITY)
    out["sensitivity_added"] = None if added is None else float(added)
    return out | {"saved": {n: None if v is None else number(-v) for n, v in grown.items()}}


def _changes(network: Network, chosen: Sequence[int]) -> Iterator[dict[int, int]]:
    """Changes of one layer that ties allow, and of whole groups to one choice."""
    for group in network.groups:
        for choice in range(len(CHOICES)):
            new = {
                layer: choice
                for layer in group
                if choice in network.allowed[layer] and chosen[layer] != choice
            }
            moves = ACTIVATION[choice] != ACTIVATION[chosen[group[0]]]
            if moves and all(choice in network.allowed[layer] for layer in group):
                yield new
            elif not moves:
                yield from ({layer: choice} for layer in new)


class _Change:
    """A change of a plan: what it adds to the sensitivity, and which limits it breaks by what."""

    def __init__(
        self, network: Network, uses: Sequence[_Use], chosen: Sequence[int], new: dict[int, int]
    ) -> None:
        self.new, self.uses = new, uses
        self.names = [row.name for row in network.table.layers]
        self.sensitivity = network.quantities[SENSITIVITY].change(chosen, new, ACTIVATION)
        self.missing: dict[str, Fraction] = {}
        for use in uses if self.sensitivity < 0 else ():
            quantity = network.quantities[use.limit.cost]
            missing = use.missing(quantity.change(chosen, new, ACTIVATION))
            if missing:
                self.missing[use.limit.name] = missing

    def order(self) -> tuple[Fraction, Fraction]:
        """Share of the budgets that it needs more, then what it adds to the sensitivity."""
        broken = [use for use in self.uses if use.limit.name in self.missing]
        shares = (self.missing[u.limit.name] / max(u.budget, _SMALL) for u in broken)
        return sum(shares, Fraction(0)), self.sensitivity

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "bits": {self.names[layer]: bits_of(choice) for layer, choice in self.new.items()},
            "sensitivity": float(self.sensitivity),
            "needs": {
                use.limit.cost: use.raised(self.missing[use.limit.name])
                for use in self.uses
                if use.limit.name in self.missing
            },
        }
