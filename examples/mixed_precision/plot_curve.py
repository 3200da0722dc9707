"""Accuracy against cost over network size: do 4-bit networks dominate 8-bit ones?

    python examples/mixed_precision/plot_curve.py curve -o results

Reads what `train_curve.py` wrote, counts size and BOPs, times the libraries at batch 1 in turn, and
writes ``curve.json``, ``curve.svg`` and ``curve.md``. The manner is that of Abdolrashidi et al.,
"Pareto-Optimal Quantized ResNet Is Mostly 4-bit" (CVPR workshops 2021, figures 1 and 2): one curve
for each precision, over networks of growing size. The costs of float are 32 bits by 32 bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from paired_timing import median_ms, time_in_turn

import tvm_q4

CONFIGS = {"float": "float", "uniform8": "W8A8", "uniform4": "W4A4"}
COSTS = {"size_kb": "weights in kB", "gbops": "GBOPs", "latency_ms": "latency in ms, this CPU"}
_COLORS = ("#555555", "#0072b2", "#d55e00")
"""Of `CONFIGS`; distinct to colour-blind eyes (Wong, Nature Methods 2011)."""

ROUNDS = 7
Row = dict[str, Any]


def main() -> None:
    """Parse the arguments, measure what is missing, and write table and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("curve", type=Path, help="the folder that train_curve.py wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = read_rows(args.curve)
    costs = measure_costs(args.curve, rows)
    points = summarise(rows, costs)
    facts = {
        "points": points,
        "rows": rows,
        "device": device(),
        "dominance": dominance(rows, costs),
        "above_curve": above_curve(rows, costs),
    }
    text = json.dumps(facts, indent=1) + "\n"
    (args.output / "curve.json").write_text(text, encoding="utf-8")
    (args.output / "curve.md").write_text(markdown(points, facts["dominance"]), encoding="utf-8")
    plot(points, args.output / "curve.svg")
    print(markdown(points, facts["dominance"]))


def read_rows(folder: Path) -> list[Row]:
    """Results of all models, by depth, precision and seed."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("resnet*_seed*_*.json"))]
    if not rows:
        raise SystemExit(f"{folder} holds no results; run train_curve.py first")
    return sorted(rows, key=lambda r: (r["depth"], list(CONFIGS).index(r["config"]), r["seed"]))


def device() -> str:
    """Name of this CPU."""
    from tvm_q4.library.host import cpu_name

    return cpu_name()


def measure_costs(folder: Path, rows: list[Row]) -> dict[tuple[int, str], dict[str, float]]:
    """Size, BOPs and latency of each depth and precision; times do not depend on the weights."""
    depths = sorted({row["depth"] for row in rows})
    seed = min(row["seed"] for row in rows)
    costs: dict[tuple[int, str], dict[str, float]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for depth in depths:
        for config in ("uniform8", "uniform4"):
            model = folder / f"resnet{depth}_seed{seed}_{config}.pt2"
            path = folder / f"resnet{depth}_{config}_batch1.so"
            library = tvm_q4.compile(model, batch=1, output=path)
            layers = library.metadata["layers"]
            costs[depth, config] = {
                "size_kb": sum(x["params"] * x["weight_bits"] for x in layers) / 8e3,
                "gbops": sum(x["bops"] for x in layers) / 1e9,
            }
            calls[f"{depth} {config}"] = call(library)
        params, macs = (sum(x[key] for x in layers) for key in ("params", "macs"))
        costs[depth, "float"] = {"size_kb": params * 4 / 1e3, "gbops": macs * 1024 / 1e9}
    for name, rounds in time_in_turn(calls, ROUNDS).items():
        depth, config = name.split()
        costs[int(depth), config]["latency_ms"] = median_ms(rounds)
    return costs


def call(library: Any) -> Callable[[], object]:
    """A function of no arguments that runs the library once."""
    x = np.zeros((1, 3, 32, 32), np.float32)
    logits = np.empty_like(library.run(x))
    return lambda: library.run(x, out=logits)


def summarise(rows: list[Row], costs: dict[tuple[int, str], dict[str, float]]) -> list[Row]:
    """One point for each depth and precision: its costs, mean accuracy, least and most of seeds."""
    points = []
    for depth, config in dict.fromkeys((r["depth"], r["config"]) for r in rows):
        found = [
            100 * r["correct"] / r["n"]
            for r in rows
            if (r["depth"], r["config"]) == (depth, config)
        ]
        points.append(
            {"depth": depth, "config": config, **costs[depth, config], "seeds": len(found)}
            | {"accuracy": statistics.mean(found), "least": min(found), "most": max(found)}
        )
    return points


def dominance(rows: list[Row], costs: dict[tuple[int, str], dict[str, float]]) -> list[Row]:
    """For each W8A8 network and cost: the best W4A4 network that costs no more, and its lead.

    ``lead`` holds, for each seed, the points of accuracy by which that network is ahead (with the
    same seed); the W4A4 curve dominates there where all are positive. Also the other way round.
    """
    correct = {(r["depth"], r["config"], r["seed"]): 100 * r["correct"] / r["n"] for r in rows}
    seeds = sorted({r["seed"] for r in rows})
    out = []
    for cost in COSTS:
        for ours, peer in (("uniform4", "uniform8"), ("uniform8", "uniform4")):
            for depth in sorted({d for d, c, _ in correct if c == peer}):
                limit = costs[depth, peer][cost]
                found = [d for (d, c), v in costs.items() if c == ours and v[cost] <= limit]
                row = {"cost": cost, "config": peer, "depth": depth, "by": ours}
                if not found:
                    out.append(row | {"by_depth": None, "lead": []})
                    continue
                best = max(found, key=lambda d: sum(correct[d, ours, s] for s in seeds))
                lead = [correct[best, ours, s] - correct[depth, peer, s] for s in seeds]
                out.append(row | {"by_depth": best, "lead": [round(v, 2) for v in lead]})
    return out


def above_curve(rows: list[Row], costs: dict[tuple[int, str], dict[str, float]]) -> list[Row]:
    """How far each W4A4 network is above the W8A8 curve at its cost, in points, by seed.

    The curve is straight between neighbouring networks over the logarithm of the cost; ``lead`` is
    empty where the cost is outside of it.
    """
    correct = {(r["depth"], r["config"], r["seed"]): 100 * r["correct"] / r["n"] for r in rows}
    seeds = sorted({r["seed"] for r in rows})
    depths = sorted({d for d, c, _ in correct if c == "uniform8"})
    out = []
    for cost in COSTS:
        curve = [np.log(costs[d, "uniform8"][cost]) for d in depths]
        for depth in depths:
            at = np.log(costs[depth, "uniform4"][cost])
            lead = []
            if curve[0] <= at <= curve[-1]:
                for seed in seeds:
                    eight = np.interp(at, curve, [correct[d, "uniform8", seed] for d in depths])
                    lead.append(round(correct[depth, "uniform4", seed] - float(eight), 2))
            out.append({"cost": cost, "depth": depth, "lead": lead})
    return out


def markdown(points: list[Row], leads: list[Row]) -> str:
    """Both tables."""
    lines = [
        "| network | precision | weights kB | GBOPs | latency ms | accuracy, mean (least..most) |",
        "|---|---|---|---|---|---|",
    ]
    for p in points:
        latency = f"{p['latency_ms']:.3f}" if "latency_ms" in p else "-"
        network = f"ResNet-{p['depth']} | {CONFIGS[p['config']]}"
        accuracy = f"{p['accuracy']:.2f} ({p['least']:.2f}..{p['most']:.2f})"
        lines.append(
            f"| {network} | {p['size_kb']:.0f} | {p['gbops']:.2f} | {latency} | {accuracy} |"
        )
    lines += ["", "| cost | network | best that costs no more | lead in points, by seed |"]
    lines += ["|---|---|---|---|"]
    for row in leads:
        name = f"ResNet-{row['depth']} {CONFIGS[row['config']]}"
        best, lead = "none", "-"
        if row["by_depth"] is not None:
            best = f"ResNet-{row['by_depth']} {CONFIGS[row['by']]}"
            lead = ", ".join(f"{v:+.2f}" for v in row["lead"])
        lines.append(f"| {COSTS[row['cost']]} | {name} | {best} | {lead} |")
    return "\n".join(lines) + "\n"


def plot(points: list[Row], path: Path) -> None:
    """Three panels, one a cost; bars span the seeds."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "tvm-q4"
    figure, panels = plt.subplots(1, 3, figsize=(13, 4), sharey=True, layout="constrained")
    for panel, (cost, label) in zip(panels, COSTS.items(), strict=True):
        for (config, name), marker, color in zip(CONFIGS.items(), "s^o", _COLORS, strict=True):
            mine = [p for p in points if p["config"] == config and cost in p]
            if not mine:
                continue
            mean = [p["accuracy"] for p in mine]
            spread = [
                [p["accuracy"] - p["least"] for p in mine],
                [p["most"] - p["accuracy"] for p in mine],
            ]
            x = [p[cost] for p in mine]
            panel.errorbar(x, mean, spread, marker=marker, color=color, capsize=3, label=name)
            for p in mine:
                panel.annotate(
                    str(p["depth"]), (p[cost], p["accuracy"]), (4, -11),
                    textcoords="offset points", fontsize=8,
                )  # fmt: skip
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("right of test_a, %")
    panels[0].legend()
    figure.suptitle("ResNet-8, 14, 20, 32 on CIFAR-10: mean of seeds, least to most")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
