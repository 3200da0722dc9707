"""Random small integer programs, and their optimum by trying everything."""

from __future__ import annotations

import itertools
from fractions import Fraction

from hypothesis import strategies as st

from tvm_q4.planning.problem import Number, Pair, Problem, Quantity

ACTIVATION = {2: (8, 4), 3: (8, 8, 4)}
"""Activation bits by choice: 8 and 4; or 8, W4A8 and 4."""

WHOLE = st.integers(0, 5)
SAME = st.sampled_from([0, 1])
DECIMAL = st.integers(0, 100).map(lambda n: n / 100)
WILD = st.builds(
    lambda digits, power: digits / 1000 * 10.0**power, st.integers(0, 9999), st.integers(-12, 6)
)


def brute_force(problem: Problem) -> Fraction | None:
    """Least score of all choices that keep ties and budgets."""
    scores = (
        problem.score.of(chosen, problem.activation)
        for chosen in itertools.product(*problem.allowed)
        if keeps_ties(problem, chosen) and problem.keeps(chosen)
    )
    return min(scores, default=None)


def keeps_ties(problem: Problem, chosen: tuple[int, ...]) -> bool:
    return all(len({problem.activation[chosen[i]] for i in tie}) <= 1 for tie in problem.tied)


@st.composite
def problems(draw: st.DrawFn, largest: int = 10) -> Problem:
    """Problems of up to `largest` layers with two choices, or of six with three."""
    choices = draw(st.sampled_from([2, 3]))
    layers = draw(st.integers(1, largest if choices == 2 else min(6, largest)))
    numbers = draw(st.sampled_from([WHOLE, SAME, DECIMAL, WILD]))
    activation = ACTIVATION[choices]

    def quantity(with_pairs: bool) -> Quantity:
        values = draw(
            st.lists(
                st.lists(numbers, min_size=choices, max_size=choices),
                min_size=layers,
                max_size=layers,
            )
        )
        pairs = draw(st.lists(_pairs(layers), max_size=3)) if with_pairs and layers > 1 else []
        return Quantity(values, pairs, draw(numbers))

    allowed = draw(
        st.lists(
            st.one_of(st.just(tuple(range(choices))), st.tuples(st.integers(0, choices - 1))),
            min_size=layers,
            max_size=layers,
        )
    )
    tied = draw(st.lists(st.lists(st.integers(0, layers - 1), max_size=3, unique=True), max_size=2))
    limits: list[tuple[Quantity, Number]] = []
    for _ in range(draw(st.integers(0, 3))):
        limited = quantity(draw(st.booleans()))
        chosen = [draw(st.sampled_from(options)) for options in allowed]
        # A budget that some choices meet exactly, or one a little off.
        budget = limited.of(chosen, activation)
        factor = draw(st.sampled_from([Fraction(1), Fraction(97, 100), Fraction(11, 10)]))
        limits.append((limited, budget * factor if draw(st.booleans()) else float(budget)))
    return Problem(quantity(draw(st.booleans())), allowed, activation, limits, tied)


def _pairs(layers: int) -> st.SearchStrategy[Pair]:
    """Differences, negative ones too, of one layer and one or two readers."""
    delta = st.integers(-200, 200).map(lambda n: n / 100)
    ends = st.lists(st.integers(0, layers - 1), min_size=2, max_size=min(3, layers), unique=True)
    return st.builds(
        lambda some, a, b: Pair(some[0], some[1:], {(8, 4): a, (4, 8): b}), ends, delta, delta
    )
