"""`tvm_q4.plan` on a table that can be planned by hand: costs, limits, explanation, sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tvm_q4
from tests.planning.tables import fixed, table
from tvm_q4.errors import CheckFailed, InputError
from tvm_q4.layer_table import from_dict
from tvm_q4.planning.workflow import plan
from tvm_q4.quantize.config import LayerBits, load_bit_config

NAMES = ["conv1", "conv2", "conv3", "fc"]


def bits(found: dict[str, Any]) -> list[Any]:
    return [found["bits"][name] for name in NAMES]


def test_public_function() -> None:
    assert tvm_q4.plan is plan


def test_costs_and_keys() -> None:
    # 60 bytes at 4 bits, 120 at 8: of the budget of 90, all at 4 but fc would take 92.
    found = plan(table(), limits={"size": 0.5})
    assert found["status"] == "optimal" and found["proof"] == "exact"
    assert bits(found) == [8, 8, 8, 4]
    assert found["sensitivity"] == 4 * 0.5 + 8.0
    assert found["budgets"] == {"size_bytes": 90}
    bops = 560 * 64 + 640 * 16
    assert found["costs"] == {"size_bytes": 88, "bops_total": bops, "latency_ms": 3.625}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"size": 1}, [8, 8, 8, 8]),
        ({"size": 0}, [4, 4, 4, 4]),
        ({"size_bytes": 104}, [8, 8, 4, 8]),
        ({"size_bytes": 103.9}, [8, 4, 4, 8]),
        (["bops_total=76799"], [8, 8, 4, 8]),
        (["latency_ms=2.75"], [8, 8, 4, 8]),
        (["latency=0.4"], [8, 4, 4, 8]),
        (["latency_ms=2.75", "size=0.7"], [8, 4, 4, 8]),
    ],
)
def test_limits(limits: Any, expected: list[int]) -> None:
    assert bits(plan(table(), limits=limits)) == expected


def test_w4a8_saves_weights_and_keeps_activations() -> None:
    found = plan(table(), limits={"size": 0.5}, choices="4,8,w4a8")
    assert set(bits(found)) <= {8, "w4a8"}
    assert found["costs"]["bops_total"] == sum(
        10 * r["params"] * (64 if found["bits"][r["name"]] == 8 else 32) for r in table()["layers"]
    )


def test_ties_are_of_activations() -> None:
    tied = table(tied=[["conv2", "fc"]])
    assert bits(plan(tied, limits={"size_bytes": 100})) == [4, 8, 4, 8]
    # Weights may differ within a tie.
    found = plan(tied, limits={"size_bytes": 112}, choices=[4, 8, "w4a8"], fix=["fc=8", "conv3=8"])
    assert bits(found) == [8, "w4a8", 8, 8]


def test_fixes_do_not_move_the_budget() -> None:
    free = plan(table(), limits={"size": 0.8})
    held = plan(table(), limits={"size": 0.8}, fix={"conv3": 8})
    assert held["budgets"] == free["budgets"]
    assert held["bits"]["conv3"] == 8 and free["bits"]["conv3"] == 4
    assert plan(table(), limits={"size": 1}, fix=["fc=4"])["bits"]["fc"] == 4
    assert plan(table(), limits={"size": 1}, fix=["fc=w4a8"])["bits"]["fc"] == "w4a8"


def test_fixed_rows_count_at_8_in_every_cost() -> None:
    found = plan(fixed(table(), "fc"), limits={"size": 0})
    assert bits(found) == [4, 4, 4, 8]
    assert found["budgets"]["size_bytes"] == found["costs"]["size_bytes"] == 28 + 64


def test_the_rest_and_boundaries_are_latency() -> None:
    boundary = {"from": "conv1", "to": ["conv2"], "latency_ms": {"8-4": 0.25, "4-8": -0.125}}
    data = table(rest_ms=10, boundaries=[boundary])
    for fix, extra in (({"conv1": 8, "conv2": 4}, 0.25), ({"conv1": 4, "conv2": 8}, -0.125)):
        found = plan(data, limits={"size": 1}, fix=fix)
        alone = plan(table(), limits={"size": 1}, fix=fix)
        assert found["costs"]["latency_ms"] == alone["costs"]["latency_ms"] + 10 + extra
        assert found["costs"]["size_bytes"] == alone["costs"]["size_bytes"]
    assert found["references"]["4"]["costs"]["latency_ms"] == 10 + 1.875
    # At 4 everything: a boundary from a fixed row applies, so the fraction 0 can be kept.
    held = fixed(table(boundaries=[boundary]), "conv1")
    assert bits(plan(held, limits={"latency": 0})) == [8, 4, 4, 4]


def test_a_half_without_latencies_plans_sizes() -> None:
    data = table()
    for layer in data["layers"]:
        del layer["latency_ms"]
    assert set(plan(data, limits={"size": 0.5})["costs"]) == {"size_bytes", "bops_total"}
    with pytest.raises(InputError, match="layer 'conv1': latency_ms has no value at 8"):
        plan(data, limits={"latency": 0.5})


def test_tables_are_joined(tmp_path: Path) -> None:
    a, b = table(), table()
    for one, other in zip(a["layers"], b["layers"], strict=True):
        del one["latency_ms"], other["sensitivity"]
    (tmp_path / "a.json").write_text(json.dumps(a))
    joined = plan([tmp_path / "a.json", from_dict(b)], limits={"latency": 0.5})
    assert joined["bits"] == plan(table(), limits={"latency": 0.5})["bits"]


def test_explanation() -> None:
    found = plan(table(), limits=["size_bytes=104", "latency_ms=9"])
    assert found["lowered"] == [
        {
            "layer": "conv3",
            "bits": 4,
            "sensitivity_added": 1.0,
            "saved": {"size_bytes": 16, "bops_total": 320 * 48, "latency_ms": 1},
        }
    ]
    size, latency = found["limits"]
    assert (size["binding"], size["slack"], size["used"]) == (True, 0, 104)
    assert (latency["binding"], latency["slack"]) == (False, 6.25)
    assert found["next_step"] == {
        "bits": {"conv3": 8},
        "sensitivity": -1.0,
        "needs": {"size_bytes": {"more": 16}},
    }
    assert found["references"]["8"]["sensitivity"] == 2.0
    assert found["references"]["4"]["costs"]["size_bytes"] == 60


def test_next_step_of_a_tie_and_of_a_fraction() -> None:
    found = plan(table(tied=[["conv2", "conv3"]]), limits={"size": 0.6})
    assert found["next_step"]["bits"] == {"conv2": 8, "conv3": 8}
    # 96 bytes are the budget; all but the tied layers at 8 already: 120 are needed, all of them.
    assert found["next_step"]["needs"] == {"size_bytes": {"more": 24, "fraction": 1.0}}
    assert plan(table(), limits={"size": 1})["next_step"] is None


def test_the_budget_of_the_next_step_gives_that_or_better() -> None:
    found = plan(table(), limits={"size": 0.35})
    step = found["next_step"]
    (need,) = step["needs"].values()
    again = plan(table(), limits={"size": need["fraction"]})
    assert again["sensitivity"] <= found["sensitivity"] + step["sensitivity"]


def test_sweep_is_the_front() -> None:
    found = plan(table(), sweep="latency", points=9)
    points = found["points"]
    assert set(points[0]) >= {"fraction", "budget", "bits", "sensitivity", "costs"}
    assert (points[0]["fraction"], points[-1]["fraction"]) == (0.0, 1.0)
    assert bits(points[0]) == [4] * 4 and bits(points[-1]) == [8] * 4
    scores = [point["sensitivity"] for point in points]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)
    for point in points:
        alone = plan(table(), limits={"latency": point["fraction"]})
        assert alone["sensitivity"] == point["sensitivity"]
        assert point["costs"]["latency_ms"] <= point["budget"] == alone["budgets"]["latency_ms"]


def test_other_limits_hold_along_a_sweep() -> None:
    points = plan(table(), sweep="latency", points=5, limits={"size": 0.5})["points"]
    assert all(point["costs"]["size_bytes"] <= 90 for point in points)


def test_bit_configs_are_for_quantize(tmp_path: Path) -> None:
    path = tmp_path / "bits.json"
    plan(table(), limits={"size": 0.5}, choices="4,8,w4a8", fix={"conv1": 4}, output=path)
    config = load_bit_config(path)
    assert config.default == LayerBits(8, 8) and config.layers["conv1"] == LayerBits(4, 4)
    assert LayerBits(8, 8) not in config.layers.values()
    first = path.read_bytes()
    plan(table(), limits={"size": 0.5}, choices="4,8,w4a8", fix={"conv1": 4}, output=path)
    assert path.read_bytes() == first


def test_bit_configs_of_a_sweep(tmp_path: Path) -> None:
    found = plan(table(), sweep="size", points=3, output=tmp_path / "new" / "plans")
    files = sorted((tmp_path / "new" / "plans").iterdir())
    assert [f.name for f in files] == [f"size_{i}.json" for i in range(len(found["points"]))]
    assert set(load_bit_config(files[0]).layers) == set(NAMES)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            ["size_bytes=59"],
            "limit size_bytes=59 is too tight by 1 bytes: choices, ties and fixed layers allow 60 "
            "bytes at least; give size_bytes=60 or more",
        ),
        (["latency_ms=1.8"], "too tight by 0.075 ms"),
        (["size=0.25", "bops=1"], "limit size=0.25 (75 bytes) is too tight by 17 bytes"),
    ],
)
def test_infeasible_limits_tell_by_how_much(limits: list[str], message: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        plan(table(), limits=limits, fix=["fc=8"] if len(limits) > 1 else [])
    text = str(caught.value)
    assert message in text and "\n" not in text


def test_limits_that_contradict_each_other() -> None:
    # Lower bits of conv3 save bytes and cost time, so each limit alone can be kept.
    data = table()
    for layer in data["layers"]:
        layer["latency_ms"] = {"8": 1.0, "4": 2.0}
    with pytest.raises(CheckFailed) as caught:
        plan(data, limits=["bops=1", "size_bytes=60", "latency_ms=7"])
    text = str(caught.value)
    assert "limit latency_ms=7 is too tight by 1 ms within size_bytes=60" in text
    assert plan(data, limits=["size_bytes=60", "latency_ms=8"])["status"] == "optimal"


def test_a_sweep_that_cannot_be_kept() -> None:
    with pytest.raises(CheckFailed, match="size_bytes=59 is too tight by 1"):
        plan(table(), sweep="latency", limits=["size_bytes=59"])


def test_a_sweep_where_4_bits_cost_more(caplog: pytest.LogCaptureFixture) -> None:
    data = table()
    for layer in data["layers"]:
        layer["latency_ms"] = {"8": 1.0, "4": 2.0}
    points = plan(data, sweep="latency", points=3)["points"]
    assert [point["fraction"] for point in points] == [1.0]
    assert "all layers at 4 bits take 8 ms, more than the 4 ms at 8" in caplog.text
    assert bits(points[0]) == [8] * 4
