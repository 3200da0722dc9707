"""Sizes, ratios, the baseline and Pareto fronts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.comparing import reports
from tvm_q4.comparing import summary
from tvm_q4.comparing.highlights import highlights


def test_sizes_are_sums_over_layers() -> None:
    layers = [reports.layer("a", 8, 8, 100), reports.layer("b", 4, 4, 7), reports.layer("c", 4, 8)]
    found = summary.sizes(layers, 9999)
    assert found["bits"] == {"8": 1, "4": 1, "w4a8": 1}
    assert (found["params"], found["macs"]) == (1107, 11070)
    assert found["bops"] == 1000 * 64 + 70 * 16 + 10_000 * 32
    assert found["weight_bytes"] == 9999
    assert found["weight_bytes_ideal"] == 100 + 4 + 500  # 3.5 bytes of the 4-bit one, rounded up
    assert summary.sizes(layers, None)["weight_bytes"] == 604


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ([(8, 8), (4, 4), (4, 4), (8, 8)], "4"),
        ([(8, 8), (4, 8), (4, 8), (8, 8)], "w4a8"),
        ([(8, 8)] * 4, "8"),
        ([(8, 8), (4, 4), (8, 8), (8, 8)], None),
        ([(4, 4), (4, 4)], "4"),
        ([(4, 4), (8, 8)], None),
    ],
)
def test_uniform_precision_leaves_out_first_and_last(
    bits: list[tuple[int, int]], expected: str | None
) -> None:
    assert summary.uniform_bits([reports.layer("x", w, a) for w, a in bits]) == expected


def test_standard_error_of_an_accuracy() -> None:
    assert reports.accuracy(900, 1000)["stderr"] == pytest.approx(0.009487, abs=1e-6)
    assert reports.accuracy(1000, 1000)["stderr"] == 0


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", "uniform8", 4), ("uniform8", "x.pt2", 4)], "uniform8"),
        ([("b", "y.pt2", 8), ("a", "uniform8", 8)], "a"),
        ([("b", "y.pt2", 4), ("a", "x.pt2", 8)], "a"),
        ([("b", "y.pt2", 4), ("a", "x.pt2", 4)], "b"),
        ([], None),
    ],
)
def test_the_baseline(rows: list[tuple[str, str, int]], expected: str | None) -> None:
    made = [reports.row(name, bits, 1.0, None, spec=spec) for name, spec, bits in rows]
    float_row = reports.row("float", 32, 1.0, None, kind="float")
    assert summary.find_baseline([float_row, *made]) == expected


def test_ratios_are_to_the_baseline_round_by_round() -> None:
    rows = [reports.row("uniform8", 8, 2.0, 900), reports.row("b", 4, 1.0, 880)]
    rows[0]["latency"]["rounds_ms"] = [2.0, 4.0, 8.0]
    rows[1]["latency"]["rounds_ms"] = [1.0, 4.0, 6.0]
    summary.add_ratios(rows, "uniform8")
    assert rows[1]["ratios"]["latency"] == {"median": 0.75, "low": 0.5, "high": 1.0}
    assert rows[1]["ratios"]["bops"] == 0.25
    assert rows[1]["ratios"]["weight_bytes"] == rows[1]["ratios"]["library_bytes"] == 0.5
    assert rows[1]["accuracy_change"] == pytest.approx(-0.02)
    assert rows[0]["ratios"]["latency"] == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_measured_and_predicted_times_have_no_ratio() -> None:
    rows = [reports.row("uniform8", 8, 2.0, None), reports.row("b", 4, 1.0, None)]
    rows[1]["latency"] |= {"source": "predicted", "rounds_ms": []}
    summary.add_ratios(rows, "uniform8")
    assert rows[1]["ratios"]["latency"] is None


def test_fronts_leave_out_float_wrong_and_unrated_rows() -> None:
    rows = [
        reports.row("good", 4, 1.0, 800),
        reports.row("worse", 8, 2.0, 790),
        reports.row("wrong", 4, 0.5, 990, bit_exact=False),
        reports.row("float", 32, 0.1, 999, kind="float"),
        reports.row("unrated", 4, 0.1, None),
        reports.row("slow but best", 8, 3.0, 900, latency=None),
    ]
    summary.add_fronts(rows)
    assert [r["name"] for r in rows if r["front"]["latency_ms"]] == ["good"]
    assert [r["name"] for r in rows if r["front"]["bops"]] == ["good", "slow but best"]


POINT = st.tuples(st.integers(0, 5), st.integers(0, 5))


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), POINT, max_size=8))
def test_a_point_is_on_the_front_unless_one_beats_it(points: dict[str, tuple[int, int]]) -> None:
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return (a[0] <= b[0] and a[1] > b[1]) or (a[0] < b[0] and a[1] >= b[1])

    front = summary.pareto_front(points)
    assert bool(front) == bool(points)
    for name, other in itertools.product(points, points):
        if beats(points[other], points[name]):
            assert name not in front
    for name in set(points) - front:
        assert any(beats(points[other], points[name]) for other in front)


def claims(report: dict[str, Any]) -> dict[str, str]:
    return {what: name for what, name, _ in highlights(report)}


def test_highlights_name_the_best_quantized_configs() -> None:
    found = claims(reports.three())
    assert found["most accurate"] == "uniform8"
    assert found["fastest (measured)"] == found["smallest weights"] == "uniform4"
    assert found["fastest, as accurate as uniform8"] == "uniform8"


def test_highlights_without_accuracies_and_latencies() -> None:
    rows = [reports.row("a", 8, 1.0, None, latency=None)]
    assert set(claims(reports.report(rows))) == {"smallest weights", "fewest bit operations"}
    assert highlights(reports.report([])) == []
