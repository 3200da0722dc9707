"""HAWQ's networks: the optimum of each published budget against dynamic programming in integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.planning import hawq
from tvm_q4.layer_table import from_dict
from tvm_q4.planning.costs import ACTIVATION, network_of
from tvm_q4.planning.limits import CHOICES, FRACTIONS, Limit
from tvm_q4.planning.workflow import plan

SCHEMES = {"size": "modelsize", "bops": "bops", "latency": "latency"}
CASES = [(name, fraction) for name in SCHEMES for fraction in ("0.25", "0.5", "0.75")]


def _units(table: dict[str, Any], cost: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Tied layers as one: score (millionths) and cost (whole numbers) at 4 and at 8 bits."""
    second = {b: a for a, b in table["tied"]}
    units: dict[str, list[int]] = {}
    for row in table["layers"]:
        values = []
        for bits in (4, 8):
            measure = {
                "size": row["params"] * bits // 4,
                "bops": row["macs"] * bits * bits // 16,
                "latency": round(row["latency_ms"][str(bits)] * 1e5),
            }
            values += [round(row["sensitivity"][str(bits)] * 1e6), measure[cost]]
        key = second.get(row["name"], row["name"])
        units[key] = [a + b for a, b in zip(units.get(key, [0] * 4), values, strict=True)]
    return [((u[0], u[1]), (u[2], u[3])) for u in units.values()]


def least_score(table: dict[str, Any], cost: str, fraction: str) -> int:
    """Least score within the budget, in millionths: `best[w]` is that of costs of w at most."""
    units = _units(table, cost)
    base = sum(four[1] for four, _ in units)
    growth = [eight[1] - four[1] for four, eight in units]
    room = int(Fraction(fraction) * sum(growth))
    step = int(np.gcd.reduce(growth))
    best = np.zeros(room // step + 1, np.int64)
    for (score4, _), (score8, _), more in (
        (*unit, grown // step) for unit, grown in zip(units, growth, strict=True)
    ):
        at8 = np.full_like(best, np.iinfo(np.int64).max // 2)
        at8[more:] = best[: len(best) - more] + score8 if more <= len(best) else 0
        best = np.minimum(best + score4, at8)
    assert base > 0
    return int(best[-1])


def check(table: dict[str, Any], cost: str, fraction: str) -> None:
    found = plan(table, limits={cost: float(fraction)})
    assert found["proof"] == "exact"
    rows = {row["name"]: row for row in table["layers"]}
    scores = [round(rows[n]["sensitivity"][str(b)] * 1e6) for n, b in found["bits"].items()]
    assert sum(scores) == least_score(table, cost, fraction)
    assert found["sensitivity"] == pytest.approx(sum(scores) / 1e6, rel=1e-12)
    assert all(found["bits"][a] == found["bits"][b] for a, b in table["tied"])
    key = FRACTIONS[cost]
    assert found["costs"][key] <= found["budgets"][key]


@pytest.mark.parametrize(("cost", "fraction"), CASES)
def test_resnet18_as_typed(cost: str, fraction: str) -> None:
    check(hawq.resnet18(hawq.draw(19, 0)), cost, fraction)


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("cost", "fraction"), CASES)
def test_published_tables(
    data_dir: Callable[..., Path], network: str, cost: str, fraction: str
) -> None:
    for seed in range(2):
        check(hawq.published(data_dir, network, seed), cost, fraction)


def test_what_is_typed_is_what_is_published(data_dir: Callable[..., Path]) -> None:
    table = hawq.published(data_dir, "resnet18", 3)
    assert hawq.resnet18(hawq.draw(19, 3)) == table


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_published_configs_keep_our_budgets(data_dir: Callable[..., Path], network: str) -> None:
    configs = json.loads(data_dir("hawq-v3", "bit_configs.json").read_text())["configs"]
    ours = network_of(from_dict(hawq.published(data_dir, network, 0)), ("8", "4"), {}, (), "")
    for cost, fraction in CASES:
        bits = configs[f"{network}_{SCHEMES[cost]}_{fraction}"]["weight_bits"]
        chosen = [CHOICES.index(str(bits[row.name])) for row in ours.table.layers]
        limit = Limit(cost, Fraction(fraction))
        assert ours.quantities[limit.cost].of(chosen, ACTIVATION) <= ours.budget(limit)
