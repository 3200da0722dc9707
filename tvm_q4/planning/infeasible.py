"""Why no plan keeps the limits: the smallest set of limits that contradict, and by how much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction

from tvm_q4.errors import CheckFailed
from tvm_q4.planning.costs import Network
from tvm_q4.planning.limits import FRACTIONS, UNITS, Limit
from tvm_q4.planning.problem import ceiling
from tvm_q4.planning.solver import solve


def infeasible(network: Network, limits: Sequence[Limit]) -> CheckFailed:
    """Return the error that tells which limits are too tight and by how much.

    Parameters
    ----------
    network : Network
    limits : sequence of Limit
        Limits that no plan keeps together.
    """
    for size in range(1, len(limits) + 1):
        for some in itertools.combinations(limits, size):
            least = _least(network, some)
            if least > ceiling(network.budget(some[-1])):
                return CheckFailed(_message(network, some, least))
    raise AssertionError("every set of limits can be kept")


def _least(network: Network, limits: Sequence[Limit]) -> Fraction:
    """Least cost of the last limit within the budgets of the others."""
    *others, last = limits
    problem = network.problem({o.cost: network.budget(o) for o in others}, score=last.cost)
    solution = solve(problem)
    assert solution is not None, "smaller sets of limits can be kept"
    return network.quantities[last.cost].of(solution.chosen, problem.activation)


def _message(network: Network, limits: Sequence[Limit], least: Fraction) -> str:
    *others, last = limits
    budget, whole = network.budget(last), last.cost != "latency_ms"
    enough = f"{last.cost}={_up(least, whole)}"
    shown = ""
    if last.name in FRACTIONS:
        low, high = network.span(last.cost)
        shown = f" ({_up(budget, whole)} {UNITS[last.cost]})"
        if high > low and least >= low:
            enough = f"{last.name}={_up((least - low) / (high - low))}"
    within = f" within {' and '.join(map(str, others))}" if others else ""
    return (
        f"limit {last}{shown} is too tight by {_up(least - budget, whole)} {UNITS[last.cost]}"
        f"{within}: choices, ties and fixed layers allow {_up(least, whole)} {UNITS[last.cost]} "
        f"at least; give {enough} or more"
    )


def _up(value: Fraction, whole: bool = False) -> str:
    """A number of six digits, or a whole one, that is not below `value`."""
    if whole:
        return str(math.ceil(value))
    context = Context(prec=6, rounding=ROUND_CEILING)
    rounded = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{rounded.normalize():f}"
