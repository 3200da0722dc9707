"""The integer program as plain data: sums over layers, one to be least and others with budgets.

Every number is exact. A float stands for the decimal that it prints as, so 0.1 is a tenth, and sums
and comparisons of published tables come out as they do on paper.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

Number = int | float | Fraction

ALLOWANCE = Fraction(1, 10**12)
"""Share of a budget that a cost may exceed it by: what rounding to a float takes off a budget."""


def exact(value: Number) -> Fraction:
    """Return the rational number that an integer is, or that a float prints as."""
    if isinstance(value, Fraction):
        return value
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


@dataclass(frozen=True)
class Pair:
    """An additional value where neighbours differ in activation bits.

    Parameters
    ----------
    producer : int
        Index of a layer.
    consumers : sequence of int
        Layers that read its result.
    deltas : mapping of (int, int) to number
        By activation bits of the producer and of a consumer, which differ: counts once where the
        producer has the first and any consumer has the second.
    """

    producer: int
    consumers: Sequence[int]
    deltas: Mapping[tuple[int, int], Number]

    def of(self, chosen: Sequence[int], activation: Sequence[int]) -> Fraction:
        """Return the value for an index of a choice by layer, with activation bits by choice."""
        first = activation[chosen[self.producer]]
        others = {activation[chosen[consumer]] for consumer in self.consumers} - {first}
        return sum((exact(self.deltas.get((first, other), 0)) for other in others), Fraction(0))


@dataclass(frozen=True)
class Quantity:
    """A sum over layers, such as the size of a network.

    Parameters
    ----------
    values : sequence of sequences of number or None
        By layer and choice; None where the layer is not allowed that choice.
    pairs : sequence of Pair
    constant : number
    """

    values: Sequence[Sequence[Number | None]]
    pairs: Sequence[Pair] = ()
    constant: Number = 0

    def of(self, chosen: Sequence[int], activation: Sequence[int]) -> Fraction:
        """Return the sum for an index of a choice by layer.

        Parameters
        ----------
        chosen : sequence of int
        activation : sequence of int
            Activation bits by choice.
        """
        layers = (self._value(layer, choice) for layer, choice in enumerate(chosen))
        pairs = (pair.of(chosen, activation) for pair in self.pairs)
        return sum(itertools.chain(layers, pairs), exact(self.constant))

    def change(
        self, chosen: Sequence[int], new: Mapping[int, int], activation: Sequence[int]
    ) -> Fraction:
        """Return what the sum grows by where some layers take a new choice."""
        after = [new.get(layer, choice) for layer, choice in enumerate(chosen)]
        total = Fraction(0)
        for layer, choice in new.items():
            total += self._value(layer, choice) - self._value(layer, chosen[layer])
        for pair in self.pairs:
            if not new.keys().isdisjoint((pair.producer, *pair.consumers)):
                total += pair.of(after, activation) - pair.of(chosen, activation)
        return total

    def _value(self, layer: int, choice: int) -> Fraction:
        value = self.values[layer][choice]
        assert value is not None
        return exact(value)


@dataclass(frozen=True)
class Problem:
    """Choose for each layer so that the score is least, within budgets.

    Parameters
    ----------
    score : Quantity
        What is minimised.
    allowed : sequence of sequences of int
        Indices of choices by layer.
    activation : sequence of int
        Activation bits by choice.
    limits : sequence of (Quantity, number)
        Sums with their budgets.
    tied : sequence of sequences of int
        Layers that take the same activation bits.
    """

    score: Quantity
    allowed: Sequence[Sequence[int]]
    activation: Sequence[int]
    limits: Sequence[tuple[Quantity, Number]] = ()
    tied: Sequence[Sequence[int]] = field(default_factory=tuple)

    def keeps(self, chosen: Sequence[int]) -> bool:
        """Whether choices keep every budget (to within `ALLOWANCE`)."""
        return all(q.of(chosen, self.activation) <= ceiling(b) for q, b in self.limits)


def ceiling(budget: Number) -> Fraction:
    """Return the largest cost that a budget lets pass."""
    return exact(budget) + abs(exact(budget)) * ALLOWANCE
