"""A problem in integers: units of tied layers, one column a decision, one row a budget.

Scores and costs are brought to common denominators and to what decisions change of them, so that
the solver sees small numbers and the proof (`proof.py`) computes without rounding.

A unit is a group of layers that ties join; it takes one value of activation bits (its class), and
each of its layers one of the choices with those bits. A column is a class of a unit, a choice of a
layer within a class that leaves one, or a pair of neighbours that differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tvm_q4.planning.problem import Pair, Problem, Quantity, ceiling, exact


@dataclass(frozen=True)
class Unit:
    """Layers that take one value of activation bits.

    Parameters
    ----------
    layers : tuple of int
    columns : dict of int to int
        Column of each class, by its activation bits.
    free : dict of int to list of lists of (int, int, int)
        By class, for each layer with several choices: layer, choice, column.
    settled : dict of int to list of (int, int)
        By class: layers with one choice, and that choice.
    """

    layers: tuple[int, ...]
    columns: dict[int, int]
    free: dict[int, list[list[tuple[int, int, int]]]]
    settled: dict[int, list[tuple[int, int]]]

    @property
    def all_columns(self) -> set[int]:
        """Columns of all classes and choices."""
        free = (column for groups in self.free.values() for g in groups for *_, column in g)
        return {*self.columns.values(), *free}

    def combinations(self) -> Iterator[tuple[int, frozenset[int]]]:
        """Yield the class and the columns of each combination of choices of the layers."""
        for bits, column in self.columns.items():
            for combination in itertools.product(*self.free[bits]):
                yield bits, frozenset([column, *(c for *_, c in combination)])


@dataclass(frozen=True)
class Difference:
    """Column that is 1 where a unit is of one class and any of some others is of another."""

    column: int
    producer: int
    consumers: tuple[int, ...]
    bits: tuple[int, int]


@dataclass(frozen=True)
class Model:
    """Integers of a problem.

    Parameters
    ----------
    units : list of Unit
    differences : list of Difference
    score : list of int
        By column, none negative but for differences.
    rows : list of list of int
        By limit and column.
    budgets : list of int
    scale : (Fraction, Fraction)
        What the score of no column is, and what a unit of `score` is.
    """

    units: list[Unit]
    differences: list[Difference]
    score: list[int]
    rows: list[list[int]]
    budgets: list[int]
    scale: tuple[Fraction, Fraction]

    def columns(self, chosen: Sequence[int], activation: Sequence[int]) -> set[int]:
        """Return the columns of units that are 1, from the choice of each layer."""
        out = set()
        for unit in self.units:
            bits = activation[chosen[unit.layers[0]]]
            out.add(unit.columns[bits])
            out |= {c for g in unit.free[bits] for layer, k, c in g if chosen[layer] == k}
        return out

    def to_beat(self, score: Fraction) -> int:
        """Return the least whole score that is not below a given one."""
        constant, unit = self.scale
        return math.ceil((score - constant) / unit)

    def choices(self, columns: set[int]) -> list[int]:
        """Return the choice of each layer, from the columns that are 1."""
        chosen: dict[int, int] = {}
        for unit in self.units:
            (bits,) = (b for b, column in unit.columns.items() if column in columns)
            chosen.update(unit.settled[bits])
            for group in unit.free[bits]:
                chosen.update((layer, choice) for layer, choice, c in group if c in columns)
        return [chosen[layer] for layer in range(len(chosen))]


def integer_model(problem: Problem) -> Model | None:
    """Return the integers of a problem; None where ties leave a layer without a choice."""
    units, count = _units(problem)
    if any(not unit.columns for unit in units):
        return None
    home = {layer: i for i, unit in enumerate(units) for layer in unit.layers}
    quantities = [problem.score, *(quantity for quantity, _ in problem.limits)]
    differences: list[Difference] = []
    deltas: list[dict[int, Fraction]] = []
    for quantity in quantities:
        deltas.append({})
        for pair in quantity.pairs:
            for found, delta in _differences(pair, units, home, count + len(differences)):
                differences.append(found)
                deltas[-1][found.column] = delta
    width = count + len(differences)
    score, *scale = _integers(problem.score, units, deltas[0], width)
    rows, budgets = [], []
    for (quantity, budget), extra in zip(problem.limits, deltas[1:], strict=True):
        row, constant, measure = _integers(quantity, units, extra, width)
        rows.append(row)
        budgets.append(math.floor((ceiling(budget) - constant) / measure))
    return Model(units, differences, score, rows, budgets, (scale[0], scale[1]))


def _units(problem: Problem) -> tuple[list[Unit], int]:
    count = 0
    units = []
    for layers in tie_groups(len(problem.allowed), problem.tied):
        by_class = [
            {
                bits: [c for c in problem.allowed[layer] if problem.activation[c] == bits]
                for bits in {problem.activation[c] for c in problem.allowed[layer]}
            }
            for layer in layers
        ]
        common = set.intersection(*(set(classes) for classes in by_class))
        unit = Unit(layers, {}, {}, {})
        for bits in sorted(common, reverse=True):
            unit.columns[bits], count = count, count + 1
            unit.free[bits], unit.settled[bits] = [], []
            for layer, classes in zip(layers, by_class, strict=True):
                choices = classes[bits]
                if len(choices) == 1:
                    unit.settled[bits].append((layer, choices[0]))
                    continue
                unit.free[bits].append([(layer, c, count + i) for i, c in enumerate(choices)])
                count += len(choices)
        units.append(unit)
    return units, count


def tie_groups(count: int, tied: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the layers by group, where ties that share a layer are one group."""
    group = {layer: {layer} for layer in range(count)}
    for layers in tied:
        merged = set().union(*(group[layer] for layer in layers))
        group.update((layer, merged) for layer in merged)
    return sorted({tuple(sorted(layers)) for layers in group.values()})


def _differences(
    pair: Pair, units: Sequence[Unit], home: dict[int, int], column: int
) -> list[tuple[Difference, Fraction]]:
    producer = home[pair.producer]
    consumers = sorted({home[layer] for layer in pair.consumers} - {producer})
    found: list[tuple[Difference, Fraction]] = []
    for (first, second), delta in pair.deltas.items():
        readers = tuple(c for c in consumers if second in units[c].columns)
        if first == second or not exact(delta) or not readers:
            continue
        if first in units[producer].columns:
            difference = Difference(column + len(found), producer, readers, (first, second))
            found.append((difference, exact(delta)))
    return found


def _integers(
    quantity: Quantity, units: Sequence[Unit], deltas: dict[int, Fraction], width: int
) -> tuple[list[int], Fraction, Fraction]:
    """What each column adds to a constant, in units of a measure; the constant; the measure."""

    def value(layer: int, choice: int) -> Fraction:
        found = quantity.values[layer][choice]
        assert found is not None
        return exact(found)

    row = [Fraction(0)] * width
    constant = exact(quantity.constant)
    for column, delta in deltas.items():
        row[column] = delta
    for unit in units:
        for bits, column in unit.columns.items():
            row[column] = sum((value(*pair) for pair in unit.settled[bits]), Fraction(0))
            for group in unit.free[bits]:
                least = min(value(layer, choice) for layer, choice, _ in group)
                row[column] += least
                for layer, choice, at in group:
                    row[at] = value(layer, choice) - least
        least = min(row[column] for column in unit.columns.values())
        constant += least
        for column in unit.columns.values():
            row[column] -= least
    measure = _measure(row)
    return [int(value / measure) for value in row], constant, measure


def _measure(values: Sequence[Fraction]) -> Fraction:
    """The greatest number that all values are multiples of; 1 where all are 0."""
    denominator = math.lcm(*(value.denominator for value in values))
    common = math.gcd(*(int(value * denominator) for value in values))
    return Fraction(common, denominator) if common else Fraction(1)
