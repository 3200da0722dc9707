"""Counting differences."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_q4.comparison import Comparison, Difference, top1_agreement
from tvm_q4.errors import LibraryError


def test_integers_of_different_types():
    d = Difference()
    d.add(np.array([0, 255, 7], np.uint8), np.array([-128, -1, 7], np.int8))
    assert (d.elements, d.equal, d.max_step, d.exact) == (3, 1, 256, False)
    d.add(np.array([2**31 - 1], np.int32), np.array([-(2**31)], np.int32))
    assert d.max_step == 2**32 - 1 and d.fraction == 0.25


def test_floats():
    d = Difference()
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    same = d.add(
        np.array([nan, inf, 1, 0], np.float32), np.array([nan, inf, 1.5, -0.0], np.float32)
    )
    assert same.tolist() == [True, True, False, True]
    assert (d.equal, d.max_step) == (3, 0.5)


def test_fraction_is_one_only_for_equality():
    d = Difference()
    for _ in range(20):
        d.add(np.zeros(10**6, np.int8), np.zeros(10**6, np.int8))
    assert d.exact and d.fraction == 1.0
    d.add(np.zeros(1, np.int8), np.ones(1, np.int8))
    assert not d.exact and d.fraction < 1.0


def test_padding_images_do_not_count():
    c = Comparison([])
    value = np.zeros((4, 2), np.int8)
    wrong = value.copy()
    wrong[3] = 1
    c.add({"a": value}, {"a": wrong}, 3)
    c.add_output(value, wrong, 3, exact=True)
    assert c.report(False)["bit_exact"] is True
    c.add({"a": value}, {"a": wrong}, 4)
    report = c.report(False)
    assert report["bit_exact"] is False
    assert report["first_mismatch"] == {
        "name": "a", "index": [3, 0], "expected": 0, "found": 1, "different": 2, "elements": 8,
    }  # fmt: skip


def test_nothing_in_common_is_not_exact():
    c = Comparison([])
    c.add({"a": np.zeros((1, 1))}, {"b": np.zeros((1, 1))}, 1)
    c.add_output(np.zeros((1, 1)), np.zeros((1, 1)), 1, exact=True)
    assert c.report(False)["bit_exact"] is False


def test_an_output_behind_float_operators_may_differ():
    c = Comparison([])
    c.add({"a": np.zeros((1, 1))}, {"a": np.zeros((1, 1))}, 1)
    c.add_output(np.zeros((1, 1)), np.ones((1, 1)), 1, exact=False)
    report = c.report(False)
    assert report["bit_exact"] is True and report["output"] == {"equal": 0.0, "max_step": 1.0}


def test_wrong_output_is_not_exact():
    c = Comparison([])
    c.add({"a": np.zeros((1, 1))}, {"a": np.zeros((1, 1))}, 1)
    c.add_output(np.zeros((1, 1)), np.ones((1, 1)), 1, exact=True)
    assert c.report(True)["first_mismatch"]["name"] == "output"


def test_shapes_must_agree():
    with pytest.raises(LibraryError, match="'a'"):
        Comparison([]).add({"a": np.zeros((2, 1))}, {"a": np.zeros((2, 3))}, 2)


def test_top1_agreement():
    a = np.array([[1, 2], [3, 1], [0, 0], [5, 9]])
    b = np.array([[0, 1], [1, 3], [7, 1], [0, 1]])
    assert top1_agreement(a, b) == 0.75
    assert top1_agreement(a, b[:3]) is None
    assert top1_agreement(a[:, :, None], b[:, :, None]) is None
