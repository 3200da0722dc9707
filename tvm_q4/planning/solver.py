"""The optimum of a problem: HiGHS (``scipy.optimize.milp``), then an exact check.

HiGHS works in floats with absolute tolerances of about 1e-6, so rows and the score are scaled to
sums of about a million at most, by powers of two. An answer that breaks a budget within them is
excluded and the next one is asked for. `proof.prove` then looks for anything better in integers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tvm_q4.errors import EnvironmentMismatch
from tvm_q4.planning.integer_model import Model, integer_model
from tvm_q4.planning.problem import Problem
from tvm_q4.planning.proof import prove
from tvm_q4.quiet import quiet_native

_LARGEST = 2**20
_RETRIES, _COMBINATIONS = 20, 256
_MARGIN = 1e-4
"""What scaled budgets lose where too many answers break them within tolerances."""

_FINER = 4
"""How much smaller the scores of what remains must be to be solved once more, at a finer scale."""

Row = tuple[dict[int, int], int]
"""Coefficients by column, and what their sum is at most."""


@dataclass(frozen=True)
class Solution:
    """An optimum.

    Parameters
    ----------
    chosen : tuple of int
        Index of the choice of each layer.
    proof : str
        ``"exact"`` where integers prove that nothing is better, ``"solver"`` where the search for
        it was too long, so that the optimum holds within the solver's tolerances.
    """

    chosen: tuple[int, ...]
    proof: str


def solve(problem: Problem, *, nodes: int = 20_000) -> Solution | None:
    """Return choices of the least score that keep all budgets and ties.

    Of several optima one is returned that no single change makes cheaper (compared limit by limit,
    in order), and the same one in every run.

    Parameters
    ----------
    problem : Problem
    nodes : int
        Steps of the proof's search.

    Returns
    -------
    Solution or None
        None where no choices keep the budgets and ties.

    Raises
    ------
    EnvironmentMismatch
        If scipy is not installed.
    """
    best, certain = _best(problem, nodes)
    if best is None:
        return None
    model = integer_model(problem)
    assert model is not None
    chosen = _cheapest(problem, model, model.columns(best, problem.activation))
    return Solution(tuple(chosen), "exact" if certain else "solver")


def _best(problem: Problem, nodes: int) -> tuple[list[int] | None, bool]:
    """Choices of the least score, and whether integers prove it."""
    best: list[int] | None = None
    rest, reach = problem, None
    while True:
        model = integer_model(rest)
        if model is None:  # no choices are left that could be better
            return best, True
        before, reach = reach, sum(map(abs, model.score)) * model.scale[1]
        if before is not None and reach * _FINER >= before:
            return best, False
        links = _links(model)
        relaxation = _Relaxation(model, links)
        best = _better(problem, best, relaxation.optimum(rest))
        beat = None if best is None else model.to_beat(problem.score.of(best, problem.activation))
        outcome = prove(model, relaxation.prices(), links, beat, nodes=nodes)
        if outcome.columns is not None:
            best = model.choices(outcome.columns)
        if outcome.certain:
            return best, True
        allowed = [sorted(outcome.allowed.get(i, ())) for i in range(len(rest.allowed))]
        rest = replace(rest, allowed=allowed)


def _better(problem: Problem, a: list[int] | None, b: list[int] | None) -> list[int] | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b, key=lambda chosen: problem.score.of(chosen, problem.activation))


def _links(model: Model) -> list[Row]:
    """Rows that make each difference what it means (see `Difference`)."""
    rows: list[Row] = []
    for difference in model.differences:
        first, second = difference.bits
        y = difference.column
        producer = model.units[difference.producer].columns[first]
        consumers = [model.units[c].columns[second] for c in difference.consumers]
        rows.append(({y: 1, producer: -1}, 0))
        rows.append(({y: 1, **dict.fromkeys(consumers, -1)}, 0))
        rows += [({y: -1, producer: 1, consumer: 1}, 1) for consumer in consumers]
    return rows


class _Relaxation:
    """The model in floats, as HiGHS takes it."""

    def __init__(self, model: Model, links: Sequence[Row]) -> None:
        self.scipy = _scipy()
        self.model = model
        self.score_scale = _scale(model.score)
        self.row_scales = [_scale(row) for row in model.rows]
        self.score = np.array([value / self.score_scale for value in model.score])
        self.rows: list[Row] = [*((_sparse(row), b) for row, b in _clipped(model)), *links]
        self.scales = [*self.row_scales, *(1 for _ in links)]
        self.equal = _one_each(model)

    def optimum(self, problem: Problem) -> list[int] | None:
        """The solver's best choices that keep all budgets exactly."""
        rows, scales = list(self.rows), list(self.scales)
        for _ in range(_RETRIES):
            columns = self._solve(rows, scales)
            if columns is None:
                return None
            chosen = self.model.choices(columns)
            if problem.keeps(chosen):
                return chosen
            rows.append((dict.fromkeys(columns, 1), len(columns) - 1))
            scales.append(1)
        columns = self._solve(rows, scales, margin=_MARGIN)
        chosen = [] if columns is None else self.model.choices(columns)
        return chosen if columns is not None and problem.keeps(chosen) else None

    def _solve(
        self, rows: Sequence[Row], scales: Sequence[int], margin: float = 0.0
    ) -> set[int] | None:
        """Columns of units that are 1 in the solver's answer, with limits tighter by a margin."""
        # Differences follow from the units, by their links.
        integrality = np.ones(len(self.score))
        integrality[[d.column for d in self.model.differences]] = 0
        with quiet_native():  # HiGHS prints remarks, whatever its options say
            found = self.scipy.milp(
                self.score,
                integrality=integrality,
                bounds=self.scipy.Bounds(0, 1),
                constraints=self._constraints(rows, scales, margin),
                options={"mip_rel_gap": 0},
            )
        return None if found.x is None else self._ones(found.x)

    def prices(self) -> list[Fraction]:
        """Price of each row in the linear relaxation, in the model's units; 0 without one."""
        if not self.rows:
            return []
        found = self.scipy.linprog(
            self.score,
            A_ub=self._matrix([row for row, _ in self.rows], self.scales),
            b_ub=self._most(self.rows, self.scales),
            A_eq=self._matrix([row for row, _ in self.equal], [1] * len(self.equal)),
            b_eq=[most for _, most in self.equal],
            bounds=(0, 1),
            method="highs",
        )
        if found.x is None:
            return [Fraction(0)] * len(self.rows)
        duals = np.maximum(0.0, -found.ineqlin.marginals)
        ratios = (Fraction(self.score_scale, scale) for scale in self.scales)
        return [Fraction(float(dual)) * ratio for dual, ratio in zip(duals, ratios, strict=True)]

    def _ones(self, x: np.ndarray) -> set[int]:
        """Columns of units that are 1; the largest of each set of which one is."""
        out = set()
        for unit in self.model.units:
            bits = max(unit.columns, key=lambda b: x[unit.columns[b]])
            out.add(unit.columns[bits])
            out |= {max((c for *_, c in group), key=lambda c: x[c]) for group in unit.free[bits]}
        return out

    def _constraints(self, rows: Sequence[Row], scales: Sequence[int], margin: float) -> list[Any]:
        make = self.scipy.LinearConstraint
        ones = [most for _, most in self.equal]
        equal = make(self._matrix([row for row, _ in self.equal], [1] * len(ones)), ones, ones)
        if not rows:
            return [equal]
        matrix = self._matrix([row for row, _ in rows], scales)
        most = np.array(self._most(rows, scales))
        most[: len(self.row_scales)] -= margin
        return [equal, make(matrix, -np.inf, most)]

    def _matrix(self, rows: Sequence[dict[int, int]], scales: Sequence[int]) -> Any:
        from scipy.sparse import csr_array

        entries = [
            (i, c, v / s)
            for i, (r, s) in enumerate(zip(rows, scales, strict=True))
            for c, v in r.items()
        ]
        i, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
        return csr_array((values, (i, columns)), shape=(len(rows), len(self.score)))

    @staticmethod
    def _most(rows: Sequence[Row], scales: Sequence[int]) -> list[float]:
        return [most / scale for (_, most), scale in zip(rows, scales, strict=True)]


def _one_each(model: Model) -> list[Row]:
    """Equations: each unit has one class, and each layer of it one choice within that."""
    rows: list[Row] = []
    for unit in model.units:
        rows.append((dict.fromkeys(unit.columns.values(), 1), 1))
        for bits, column in unit.columns.items():
            rows += [({column: -1} | {c: 1 for *_, c in g}, 0) for g in unit.free[bits]]
    return rows


def _scale(row: Sequence[int]) -> int:
    """Power of two that brings the sum of a row to `_LARGEST` at most."""
    return 2 ** max(0, sum(map(abs, row)).bit_length() - _LARGEST.bit_length())


def _clipped(model: Model) -> list[tuple[list[int], int]]:
    """Rows with budgets no further off than what their sums can reach, which floats can hold."""
    out = []
    for row, budget in zip(model.rows, model.budgets, strict=True):
        reach = sum(map(abs, row)) + 1
        out.append((row, max(-reach, min(reach, budget))))
    return out


def _sparse(row: Sequence[int]) -> dict[int, int]:
    return {column: value for column, value in enumerate(row) if value}


def _cheapest(problem: Problem, model: Model, columns: set[int]) -> list[int]:
    """Change unit by unit what has the same score and less cost, or as much cost and more bits."""
    if any(model.score[d.column] for d in model.differences):
        return model.choices(columns)
    changed = True
    while changed:
        changed = False
        for unit in model.units:
            own = columns & unit.all_columns
            score = sum(model.score[c] for c in own)
            for _, other in itertools.islice(unit.combinations(), _COMBINATIONS):
                if other == own or sum(model.score[c] for c in other) != score:
                    continue
                new = (columns - own) | other
                if _expense(problem, model, new) < _expense(problem, model, columns):
                    columns, own, changed = new, set(other), True
    return model.choices(columns)


def _expense(problem: Problem, model: Model, columns: set[int]) -> tuple[Any, ...]:
    """What decides between answers of one score: budgets kept, costs, choices."""
    chosen = model.choices(columns)
    costs = [quantity.of(chosen, problem.activation) for quantity, _ in problem.limits]
    return (not problem.keeps(chosen), costs, chosen)


def _scipy() -> Any:
    try:
        import scipy.optimize
    except ImportError as error:
        msg = 'planning needs scipy; install it with pip install "tvm-q4[plan]"'
        raise EnvironmentMismatch(msg) from error
    return scipy.optimize
