"""A layer table as quantities to plan with: sensitivity, size, BOPs and latency of a network.

BOPs are MACs times weight bits times activation bits, the size is that of the weights
(numerics.md, Mixed precision), and the latency adds up layers, boundaries and the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tvm_q4.errors import InputError
from tvm_q4.layer_table import Boundary, LayerRow, LayerTable
from tvm_q4.planning.integer_model import tie_groups
from tvm_q4.planning.limits import CHOICES, FRACTIONS, Limit
from tvm_q4.planning.problem import Number, Pair, Problem, Quantity, exact

BITS = {"8": (8, 8), "w4a8": (4, 8), "4": (4, 4)}
"""Weight and activation bits of `CHOICES`."""

ACTIVATION = tuple(BITS[choice][1] for choice in CHOICES)
SENSITIVITY = "sensitivity"

Budgets = Mapping[str, Fraction]
"""Budgets by cost."""


@dataclass(frozen=True)
class Network:
    """What can be planned of a network.

    Parameters
    ----------
    table : LayerTable
    quantities : dict of str to Quantity
        The sensitivity and the costs that are known, by name.
    allowed : list of tuple of int
        Indices into `CHOICES` by layer.
    groups : list of tuple of int
        Layers with one value of activation bits, by index; single ones included.
    """

    table: LayerTable
    quantities: dict[str, Quantity]
    allowed: list[tuple[int, ...]]
    groups: list[tuple[int, ...]]

    @property
    def costs(self) -> dict[str, Quantity]:
        """The quantities that can be limited."""
        return {name: q for name, q in self.quantities.items() if name != SENSITIVITY}

    def problem(self, budgets: Budgets, score: str = SENSITIVITY) -> Problem:
        """Return the integer program that minimises a quantity within budgets."""
        limits = [(self.quantities[name], budget) for name, budget in budgets.items()]
        return Problem(self.quantities[score], self.allowed, ACTIVATION, limits, self.groups)

    def uniform(self, choice: str) -> list[int]:
        """Return choices of all layers at one precision, but for those that stay at 8."""
        wanted, eight = CHOICES.index(choice), CHOICES.index("8")
        return [wanted if row.fixed is None else eight for row in self.table.layers]

    def value(self, name: str, chosen: Sequence[int]) -> Fraction | None:
        """Return a quantity for a choice by layer; None where the table lacks a value for it."""
        quantity = self.quantities[name]
        if any(values[c] is None for values, c in zip(quantity.values, chosen, strict=True)):
            return None
        return quantity.of(chosen, ACTIVATION)

    def span(self, cost: str) -> tuple[Fraction, Fraction]:
        """Return a cost with all layers at 4 and at 8 bits.

        Raises
        ------
        InputError
            If the table lacks a value for it.
        """
        ends = []
        for choice in ("4", "8"):
            found = self.value(cost, self.uniform(choice))
            if found is None:
                msg = f"a fraction of {cost} needs every layer's value at {choice}"
                raise InputError(f"{msg}; complete the table, or give {cost}= itself")
            ends.append(found)
        return ends[0], ends[1]

    def budget(self, limit: Limit) -> Fraction:
        """Return the budget of a limit, of a fraction from all 4 to all 8 bits."""
        if limit.name not in FRACTIONS:
            return limit.value
        low, high = self.span(limit.cost)
        return low + limit.value * (high - low)


def network_of(
    table: LayerTable,
    choices: Sequence[str],
    fixes: Mapping[str, str],
    needed: Iterable[str],
    where: str,
) -> Network:
    """Return what can be planned of a table.

    Parameters
    ----------
    table : LayerTable
    choices : sequence of str
        Some of `CHOICES`.
    fixes : mapping of str to str
        Precision of layers that are held.
    needed : iterable of str
        Costs that the table has to tell.
    where : str
        Files, for error messages.

    Raises
    ------
    InputError
        If a value is missing that is needed, or that other layers have, or ties and fixed layers
        contradict each other.
    """
    required = {SENSITIVITY, *needed}
    allowed = [_allowed(row, choices, fixes, where) for row in table.layers]
    index = {row.name: i for i, row in enumerate(table.layers)}
    groups = tie_groups(len(index), [[index[name] for name in group] for group in table.tied])
    for group in groups:
        _check_tie(group, table, allowed)
    quantities: dict[str, Quantity] = {}
    for name, key in ((SENSITIVITY, "sensitivity"), ("latency_ms", "latency_ms")):
        columns = _by_precision(table, allowed, key, name in required, where)
        if columns is not None:
            quantities[name] = Quantity(columns)
    if "latency_ms" in quantities:
        pairs = [_pair(boundary, index, allowed, where) for boundary in table.boundaries]
        rest = exact(table.rest_ms or 0)
        quantities["latency_ms"] = Quantity(quantities["latency_ms"].values, pairs, rest)
    for name, key in (("size_bytes", "params"), ("bops_total", "macs")):
        counts = _counts(table, key, name in required, where)
        if counts is not None:
            quantities[name] = Quantity([_row_costs(name, count) for count in counts])
    order = (SENSITIVITY, *FRACTIONS.values())
    return Network(table, {n: quantities[n] for n in order if n in quantities}, allowed, groups)


def _row_costs(name: str, count: Fraction) -> list[Fraction]:
    """Size or BOPs of a layer at each choice."""
    if name == "size_bytes":
        return [count * BITS[choice][0] / 8 for choice in CHOICES]
    return [count * BITS[choice][0] * BITS[choice][1] for choice in CHOICES]


def _allowed(
    row: LayerRow, choices: Sequence[str], fixes: Mapping[str, str], where: str
) -> tuple[int, ...]:
    fix = fixes.get(row.name)
    if row.fixed is not None and fix not in (None, "8"):
        raise InputError(f"{where}: layer '{row.name}' is fixed at 8; it cannot be held at {fix}")
    found = ["8"] if row.fixed is not None else [fix] if fix is not None else choices
    return tuple(CHOICES.index(choice) for choice in found)


def _check_tie(group: Sequence[int], table: LayerTable, allowed: Sequence[tuple[int, ...]]) -> None:
    bits = [{ACTIVATION[choice] for choice in allowed[layer]} for layer in group]
    if set.intersection(*bits):
        return
    names = [table.layers[layer].name for layer in group]
    first = next(i for i in range(len(group)) if bits[i] != bits[0])
    msg = (
        f"layers '{names[0]}' and '{names[first]}' are tied to the same activation bits, but one "
        f"can only have {_either(bits[0])} and the other {_either(bits[first])}"
    )
    raise InputError(f"{msg}; change what is fixed, or the choices")


def _either(bits: set[int]) -> str:
    return " or ".join(str(b) for b in sorted(bits))


def _by_precision(
    table: LayerTable,
    allowed: Sequence[tuple[int, ...]],
    key: str,
    required: bool,
    where: str,
) -> list[list[Number | None]] | None:
    """Values by layer and choice; None where no layer has one and none is required."""
    for index, choice in enumerate(CHOICES):
        users = [r for r, of in zip(table.layers, allowed, strict=True) if index in of]
        missing = [row for row in users if getattr(row, key).get(choice) is None]
        if not missing:
            continue
        if len(missing) < len(users) or required:
            msg = f"{where}, layer '{missing[0].name}': {key} has no value at {choice}"
            raise InputError(f"{msg}; add a table that has it")
        return None
    return [
        [None if (v := getattr(row, key).get(c)) is None else exact(v) for c in CHOICES]
        for row in table.layers
    ]


def _counts(table: LayerTable, key: str, required: bool, where: str) -> list[Fraction] | None:
    missing = [row for row in table.layers if getattr(row, key) is None]
    if missing and (required or len(missing) < len(table.layers)):
        raise InputError(f"{where}, layer '{missing[0].name}': {key} is missing; add it")
    return None if missing else [exact(getattr(row, key)) for row in table.layers]


def _pair(
    boundary: Boundary,
    index: Mapping[str, int],
    allowed: Sequence[tuple[int, ...]],
    where: str,
) -> Pair:
    producer, consumers = index[boundary.producer], [index[c] for c in boundary.consumers]
    firsts = {ACTIVATION[choice] for choice in allowed[producer]}
    seconds = {ACTIVATION[choice] for consumer in consumers for choice in allowed[consumer]}
    deltas = {}
    for key, bits in (("8-4", (8, 4)), ("4-8", (4, 8))):
        if key in boundary.latency_ms:
            deltas[bits] = exact(boundary.latency_ms[key])
        elif bits[0] in firsts and bits[1] in seconds:
            msg = f"{where}, boundary of '{boundary.producer}': latency_ms has no value at {key}"
            raise InputError(f"{msg}; add it, 0 where it costs nothing")
    return Pair(producer, consumers, deltas)
