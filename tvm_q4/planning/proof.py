"""Certainty of an optimum: branch and bound in integers, with the solver's prices.

A solver of floats compares to within tolerances. Its linear relaxation gives each limit a price,
and the Lagrangian with any prices is a bound that integers compute exactly (Fisher 1981, "The
Lagrangian Relaxation Method"; Neumaier and Shcherbina 2004, "Safe bounds in linear and
mixed-integer linear programming", for prices from floats). What a choice lies above the best of its
unit in it is its excess: choices whose excess reaches the gap between an answer and the bound
cannot be part of a better answer. The few that remain are searched, and where those are too many
they make a smaller problem, which the solver sees at a finer scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tvm_q4.planning.integer_model import Difference, Model, Unit

_OPTIONS = 4096
"""Combinations of choices in one unit; more are not searched."""


@dataclass(frozen=True)
class _Option:
    """A combination of choices of one unit."""

    excess: int
    score: int
    costs: tuple[int, ...]
    bits: int
    columns: frozenset[int]


class _TooLarge(Exception):
    """The search reached its limit."""


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Parameters
    ----------
    columns : set of int or None
        Columns of units of a better answer; None where none was found.
    certain : bool
        Nothing is better than `columns`, or than what was to beat.
    allowed : dict of int to set of int
        Choices by layer that an even better answer can have.
    """

    columns: set[int] | None
    certain: bool
    allowed: dict[int, set[int]]


def prove(
    model: Model,
    prices: Sequence[Fraction],
    links: Sequence[tuple[dict[int, int], int]],
    beat: int | None,
    *,
    nodes: int,
) -> Outcome:
    """Search for an answer with a score below `beat`.

    Parameters
    ----------
    model : Model
    prices : sequence of Fraction
        Of each limit, then of each link, in score a unit of the row; none negative.
    links : sequence of (dict, int)
        Rows (coefficients by column, at most) that tie differences to units.
    beat : int, optional
        Score of the best answer known; None where there is none.
    nodes : int
        Steps after which the search gives up.
    """
    search = _Search(model, prices, links, _worst(model) + 1 if beat is None else beat, nodes)
    try:
        search.run()
    except _TooLarge:
        return Outcome(search.best, False, search.allowed())
    return Outcome(search.best, True, {})


class _Search:
    def __init__(
        self,
        model: Model,
        prices: Sequence[Fraction],
        links: Sequence[tuple[dict[int, int], int]],
        score: int,
        nodes: int,
    ) -> None:
        self.model, self.score, self.nodes = model, score, nodes
        self.best: set[int] | None = None
        self.scale = math.lcm(*(price.denominator for price in prices))
        weights = [int(price * self.scale) for price in prices]
        limits, linking = weights[: len(model.rows)], weights[len(model.rows) :]
        self.reduced = [self.scale * value for value in model.score]
        for weight, row in zip(limits, model.rows, strict=True):
            self.reduced = [r + weight * v for r, v in zip(self.reduced, row, strict=True)]
        for weight, (link, _) in zip(linking, links, strict=True):
            for column, value in link.items():
                self.reduced[column] += weight * value
        bounds = [*model.budgets, *(most for _, most in links)]
        self.bound = -sum(w * b for w, b in zip(weights, bounds, strict=True))
        self.bound += sum(min(0, self.reduced[d.column]) for d in model.differences)
        self.bound += sum(min(self._least(u, b) for b in u.columns) for u in model.units)

    def _least(self, unit: Unit, bits: int) -> int:
        """Least reduced score of a class."""
        free = (min(self.reduced[c] for *_, c in group) for group in unit.free[bits])
        return self.reduced[unit.columns[bits]] + sum(free)

    def allowed(self) -> dict[int, set[int]]:
        """Choices by layer whose excess is within the gap."""
        out: dict[int, set[int]] = {}
        for unit in self.model.units:
            least = min(self._least(unit, bits) for bits in unit.columns)
            for bits in unit.columns:
                excess = self._least(unit, bits) - least
                for layer, choice in unit.settled[bits]:
                    out.setdefault(layer, set()).update({choice} if excess <= self.gap else ())
                for group in unit.free[bits]:
                    first = min(self.reduced[column] for *_, column in group)
                    for layer, choice, column in group:
                        if excess + self.reduced[column] - first <= self.gap:
                            out.setdefault(layer, set()).add(choice)
        return out

    @property
    def gap(self) -> int:
        """What the excess of a better answer is at most."""
        return (self.score - 1) * self.scale - self.bound

    def run(self) -> None:
        """Search all combinations that may be better than the best one known."""
        if self.gap < 0:
            return
        model = self.model
        found = [self._options(unit) for unit in model.units]
        # Units whose second choice costs most come first: their branches end soonest.
        order = sorted(
            range(len(found)), key=lambda u: -found[u][1].excess if len(found[u]) > 1 else -math.inf
        )
        self.options = [found[u] for u in order]
        place = {unit: depth for depth, unit in enumerate(order)}
        self.place = [place[u] for u in range(len(order))]
        self.ready: list[list[Difference]] = [[] for _ in order]
        for difference in model.differences:
            units = (difference.producer, *difference.consumers)
            self.ready[max(place[u] for u in units)].append(difference)
        self.rest = [tuple([0] * len(model.rows))]
        for options, ready in zip(self.options[::-1], self.ready[::-1], strict=True):
            least = [
                rest
                + min(option.costs[r] for option in options)
                + sum(min(0, row[d.column]) for d in ready)
                for r, (row, rest) in enumerate(zip(model.rows, self.rest[-1], strict=True))
            ]
            self.rest.append(tuple(least))
        self.rest.reverse()
        self.path: list[_Option] = []
        self._descend(0, 0, tuple([0] * len(model.rows)), 0)

    def _options(self, unit: Unit) -> list[_Option]:
        """Combinations of a unit's choices with an excess within the gap, the least first."""
        model, out = self.model, []
        least = min(self._least(unit, bits) for bits in unit.columns)
        for bits, columns in unit.combinations():
            excess = sum(self.reduced[c] for c in columns) - least
            if excess > self.gap:
                continue
            costs = tuple(sum(row[c] for c in columns) for row in model.rows)
            score = sum(model.score[c] for c in columns)
            out.append(_Option(excess, score, costs, bits, columns))
            if len(out) > _OPTIONS:
                raise _TooLarge
        return sorted(out, key=lambda option: option.excess)

    def _descend(self, excess: int, score: int, costs: tuple[int, ...], depth: int) -> None:
        self.nodes -= 1
        if self.nodes < 0:
            raise _TooLarge
        if any(
            cost + rest > budget
            for cost, rest, budget in zip(costs, self.rest[depth], self.model.budgets, strict=True)
        ):
            return
        if depth == len(self.options):
            if score < self.score:
                self.score = score
                self.best = {c for option in self.path for c in option.columns}
            return
        for option in self.options[depth]:
            if excess + option.excess > self.gap:
                return
            self.path.append(option)
            extra, more, added = self._settle(depth)
            if excess + option.excess + extra <= self.gap:
                total = tuple(map(sum, zip(costs, option.costs, added, strict=True)))
                reached = excess + option.excess + extra
                self._descend(reached, score + option.score + more, total, depth + 1)
            self.path.pop()

    def _settle(self, depth: int) -> tuple[int, int, tuple[int, ...]]:
        """Excess, score and costs of the differences that the choices so far decide."""
        excess = score = 0
        costs = [0] * len(self.model.rows)
        for difference in self.ready[depth]:
            column = difference.column
            excess -= min(0, self.reduced[column])
            if self._present(difference):
                excess += self.reduced[column]
                score += self.model.score[column]
                costs = [c + row[column] for c, row in zip(costs, self.model.rows, strict=True)]
        return excess, score, tuple(costs)

    def _present(self, difference: Difference) -> bool:
        first, second = difference.bits
        bits = (self.path[self.place[c]].bits for c in difference.consumers)
        return self.path[self.place[difference.producer]].bits == first and second in bits


def _worst(model: Model) -> int:
    """A score that no answer exceeds."""
    return sum(max(0, value) for value in model.score)
