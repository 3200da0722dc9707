"""Ranks with ties, and what moves between two orders."""

from __future__ import annotations

import pytest

from tvm_q4.sensitivities.ranking import compare_rankings, ranks, spearman


def test_ranks_count_from_the_largest_and_share_ties() -> None:
    assert ranks([3.0, 9.0, 3.0, 1.0]).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_spearman() -> None:
    assert spearman([1, 2, 3], [10, 20, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_what_moves_is_named_the_farthest_first() -> None:
    found = compare_rankings(["a", "b", "c", "d"], [4, 3, 2, 1], [2, 3, 4, 1])
    assert found["spearman"] == pytest.approx(0.2)
    moved = [(m["name"], m["weights_only"], m["with_activations"]) for m in found["moved"]]
    assert moved == [("a", 1.0, 3.0), ("c", 3.0, 1.0)]
    assert compare_rankings(["a", "b"], [2, 1], [5, 4]) == {
        "spearman": pytest.approx(1.0), "moved": []
    }  # fmt: skip
