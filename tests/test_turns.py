"""Measuring in turn: the order of calls, and ratios by round."""

from __future__ import annotations

import pytest

from tvm_q4.turns import Ratio, in_turn, ratio_by_round


def test_the_order_is_reversed_every_other_round() -> None:
    calls: list[str] = []
    turns = {name: (lambda n=name: calls.append(n) or len(calls)) for name in "abc"}
    found = list(in_turn(turns, 3))
    assert "".join(calls) == "abccbaabc"
    assert found == [(name, i) for i, name in enumerate("abccbaabc", 1)]


def test_ratios_are_of_the_same_round() -> None:
    assert ratio_by_round([2.0, 6.0, 30.0], [1.0, 2.0, 20.0]) == Ratio(2.0, 1.5, 3.0)
    assert str(Ratio(0.5, 0.25, 1.0)) == "0.50 (0.25..1.00)"
    with pytest.raises(ValueError, match="zip"):
        ratio_by_round([1.0], [])
