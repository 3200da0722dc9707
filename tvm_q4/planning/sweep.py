"""The Pareto front of one limit: the optimum at budgets from all 4 to all 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tvm_q4.planning.costs import SENSITIVITY, Network
from tvm_q4.planning.limits import FRACTIONS, Limit
from tvm_q4.planning.problem import Problem
from tvm_q4.planning.solver import Solution, solve


@dataclass(frozen=True)
class Point:
    """An optimum at one budget.

    Parameters
    ----------
    fraction, budget : Fraction
    solution : Solution
    """

    fraction: Fraction
    budget: Fraction
    solution: Solution


def sweep(network: Network, limits: Sequence[Limit], name: str, points: int) -> list[Point]:
    """Return the optimum at evenly spaced budgets, where it is better than at the one before.

    Parameters
    ----------
    network : Network
    limits : sequence of Limit
        Other limits, which all points keep.
    name : str
        A key of `FRACTIONS`.
    points : int
        Budgets, both ends included; two at least.

    Returns
    -------
    list of Point
        By budget; without those that cannot be kept, and without those whose sensitivity is that
        of a lower budget.
    """
    cost = FRACTIONS[name]
    low, high = network.span(cost)
    fixed = {limit.cost: network.budget(limit) for limit in limits}
    found: list[Point] = []
    best: Fraction | None = None
    for i in range(points):
        share = Fraction(i, points - 1)
        # Where 8 bits cost less than 4, the lowest budget is that of all 8.
        fraction = share if high >= low else 1 - share
        budget = low + fraction * (high - low)
        problem: Problem = network.problem({**fixed, cost: budget})
        solution = solve(problem)
        if solution is None:
            continue
        score = network.quantities[SENSITIVITY].of(solution.chosen, problem.activation)
        if best is None or score < best:
            found.append(Point(fraction, budget, solution))
            best = score
    return found
