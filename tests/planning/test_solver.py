"""The optimum: against brute force, at sizes beyond it, and where floats would go wrong."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings

from tests.planning.problems import brute_force, keeps_ties, problems
from tvm_q4.planning import solver
from tvm_q4.planning.problem import Pair, Problem, Quantity, exact
from tvm_q4.planning.solver import Solution, solve

A = (8, 4)


def two(eight: list[float], four: list[float], **options: object) -> Quantity:
    return Quantity(list(zip(eight, four, strict=True)), **options)


def problem(score: Quantity, *limits: tuple[Quantity, float], tied: list[list[int]] | None = None):
    return Problem(score, [(0, 1)] * len(score.values), A, limits, tied or [])


@settings(max_examples=80, deadline=None)
@given(problems())
def test_brute_force_agrees(case: Problem) -> None:
    expected, found = brute_force(case), solve(case)
    if expected is None:
        assert found is None
        return
    assert found is not None and found.proof == "exact"
    assert case.keeps(found.chosen) and keeps_ties(case, found.chosen)
    assert case.score.of(found.chosen, case.activation) == expected


@settings(max_examples=30, deadline=None)
@given(problems(6))
def test_the_search_alone_is_exact(case: Problem) -> None:
    # Whatever HiGHS answers, even nothing, the search in integers finds the optimum.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver._Relaxation, "optimum", lambda *_: None)
        found = solve(case)
    expected = brute_force(case)
    score = None if found is None else case.score.of(found.chosen, case.activation)
    assert score == expected


@settings(max_examples=30, deadline=None)
@given(problems(6))
def test_no_single_change_is_cheaper_at_the_same_score(case: Problem) -> None:
    found = solve(case)
    if found is None or case.score.pairs:
        return
    costs = [quantity.of(found.chosen, case.activation) for quantity, _ in case.limits]
    for layer, options in enumerate(case.allowed):
        for choice in options:
            other = (*found.chosen[:layer], choice, *found.chosen[layer + 1 :])
            if not keeps_ties(case, other) or not case.keeps(other):
                continue
            if case.score.change(found.chosen, {layer: choice}, case.activation) == 0:
                assert [q.of(other, case.activation) for q, _ in case.limits] >= costs


def test_the_same_problem_has_the_same_answer() -> None:
    alike = problem(two([0.0] * 12, [1.0] * 12), (two([2.0] * 12, [1.0] * 12), 18.0))
    assert len({solve(alike) for _ in range(3)}) == 1


def test_decimals_are_what_they_print_as() -> None:
    # 0.1 + 0.2 exceeds 0.3 in floats.
    case = problem(two([0, 0], [1, 1]), (two([0.1, 0.2], [0, 0]), 0.3))
    assert solve(case) == Solution((0, 0), "exact")


def test_a_budget_that_was_rounded_to_a_float_holds() -> None:
    cost = two([1 / 3, 1 / 7, 1e-3], [0, 0, 0])
    total = cost.of((0, 0, 0), A)
    assert float(total) != total
    case = problem(two([0, 0, 0], [1, 1, 1]), (cost, float(total)))
    assert solve(case).chosen == (0, 0, 0)


def test_scores_far_below_a_solvers_tolerance_count() -> None:
    # The best of 64 by 1e-9 of 1e6, which no absolute gap of 1e-6 tells apart in a relative form.
    rng = random.Random(0)
    gains = [1e6, *(rng.randint(1, 999) * 1e-12 for _ in range(30))]
    costs = [5.0, *(float(rng.randint(1, 9)) for _ in range(30))]
    case = problem(two([0.0] * 31, gains), (two(costs, [0.0] * 31), 60.0))
    found = solve(case)
    small = problem(two([0.0] * 30, gains[1:]), (two(costs[1:], [0.0] * 30), 55.0))
    assert found.proof == "exact" and found.chosen == (0, *solve(small).chosen)
    assert solve(small).proof == "exact"


def test_budgets_hold_below_a_solvers_tolerance() -> None:
    # Both layers at 8 would exceed the budget by a millionth of a millionth of what HiGHS allows.
    over = Fraction(1, 10**11)
    case = problem(two([0, 0], [1, 1.5]), (two([1, 1], [0, 0]), Fraction(2) - over))
    assert solve(case).chosen == (1, 0)


def test_numbers_out_of_a_floats_range() -> None:
    case = problem(two([0, 0], [10**400, 1]), (two([10**320, 10**320], [0, 0]), 10**320))
    assert solve(case).chosen == (0, 1)


@pytest.mark.parametrize("delta", [-3.0, 3.0])
def test_a_boundary_counts_once_where_any_reader_differs(delta: float) -> None:
    pair = Pair(0, [1, 2], {(8, 4): delta, (4, 8): 0})
    latency = two([1, 1, 1], [1, 1, 1], pairs=[pair])
    for chosen, expected in (((0, 1, 1), 3 + delta), ((0, 1, 0), 3 + delta), ((0, 0, 0), 3)):
        assert latency.of(chosen, A) == exact(expected)
    # A limit of 1 needs the gain of the boundary; a limit of 3 is lost by its cost.
    case = problem(two([0, 0, 0], [9, 1, 1]), (latency, 1.0 if delta < 0 else 3.0))
    assert sorted(solve(case).chosen) == ([0, 0, 1] if delta < 0 else [0, 0, 0])


def test_changes_are_differences_of_sums() -> None:
    pair = Pair(1, [2, 0], {(8, 4): 0.3, (4, 8): -0.7})
    latency = two([1, 2, 4], [0.5, 0.25, 0.125], pairs=[pair], constant=9)
    for a in range(8):
        chosen = [a & 1, a >> 1 & 1, a >> 2]
        for new in ({0: 1}, {1: 0, 2: 1}, {0: 0, 1: 1, 2: 0}):
            after = [new.get(i, c) for i, c in enumerate(chosen)]
            expected = latency.of(after, A) - latency.of(chosen, A)
            assert latency.change(chosen, new, A) == expected


def test_ties_that_share_a_layer_are_one() -> None:
    case = problem(two([0] * 4, [1] * 4), (two([1] * 4, [0] * 4), 3), tied=[[0, 1], [1, 2], [3]])
    assert solve(case).chosen == (0, 0, 0, 1)


def test_ties_without_common_bits_have_no_answer() -> None:
    case = Problem(two([0, 0], [1, 1]), [(0,), (1,)], A, [], [[0, 1]])
    assert solve(case) is None


def test_200_layers_are_certain() -> None:
    rng = random.Random(1)
    eight = [rng.choice([36864, 147456, 589824, 2359296, 8192]) for _ in range(200)]
    four = [size // 2 for size in eight]
    gains = [rng.lognormvariate(-5, 2) for _ in range(200)]
    size, score = two(eight, four), two([g / 256 for g in gains], gains)
    tied = [[i, i + 2] for i in range(0, 198, 8)]
    budget = sum(four) + (sum(eight) - sum(four)) // 2
    found = solve(problem(score, (size, budget), tied=tied))
    assert found.proof == "exact" and size.of(found.chosen, A) <= budget


@settings(max_examples=30, deadline=None)
@given(problems(6))
def test_a_search_cut_short_ends_and_keeps_budgets(case: Problem) -> None:
    found = solve(case, nodes=0)
    if found is not None:
        assert case.keeps(found.chosen) and keeps_ties(case, found.chosen)


def test_many_answers_that_break_a_budget_within_tolerances() -> None:
    # Each of 2**20 choices of the small layers exceeds the budget if the first layer is at 8.
    cost = two([1e6, *[2e-7] * 20], [0.0, *[1e-7] * 20])
    case = problem(two([0.0] * 21, [2.0, *[1.0] * 20]), (cost, Fraction(10**6)))
    for nodes in (0, 20_000):
        assert solve(case, nodes=nodes).chosen == (1, *[0] * 20)


def test_a_search_that_is_too_long_says_so() -> None:
    rng = random.Random(2)
    scores = [rng.random() for _ in range(24)]
    costs = [[score + rng.random() / 10 for score in scores] for _ in range(2)]
    limits = [(two(cost, [0.0] * 24), sum(cost) / 2) for cost in costs]
    case = problem(two([0.0] * 24, scores), *limits)
    short, long = solve(case, nodes=1), solve(case)
    assert (short.proof, long.proof) == ("solver", "exact")
    assert case.keeps(short.chosen)
    assert case.score.of(short.chosen, A) == case.score.of(long.chosen, A)


def test_the_solvers_own_remarks_stay_off_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    import ctypes

    from tvm_q4.quiet import quiet_native

    print("before")
    with quiet_native():
        ctypes.CDLL(None).puts(b"a remark")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
