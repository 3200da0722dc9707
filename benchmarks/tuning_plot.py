"""The tuning benchmark's picture: best-so-far speed against trials and against seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tuning_statistics import best_so_far, random_curves

from tvm_q4.tuning_logs.records import low_us

_COLUMNS = 3
_COLORS = {"ours": "#1b6ca8", "random": "#7f7f7f", "peer": "#d1495b"}


def plot(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw two panels a layer into `path`: over trials above, over seconds below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(_COLUMNS, len(rows))
    bands = -(-len(rows) // columns)
    size = (4.2 * columns, 5.4 * bands)
    figure, axes = pyplot.subplots(2 * bands, columns, figsize=size, squeeze=False)
    for number, (name, row) in enumerate(rows.items()):
        band, column = divmod(number, columns)
        above, below = axes[2 * band][column], axes[2 * band + 1][column]
        _draw(row, above, below)
        above.set_title(name, fontsize=10)
        above.set_xlabel("trials")
        below.set_xlabel("seconds")
        for axis in (above, below):
            axis.set_ylabel("GOP/s, best so far")
            axis.grid(alpha=0.3)
    for number in range(len(rows), bands * columns):
        band, column = divmod(number, columns)
        axes[2 * band][column].axis("off")
        axes[2 * band + 1][column].axis("off")
    axes[0][0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _draw(row: Mapping[str, Any], above: Any, below: Any) -> None:
    """One layer; relative times become speeds through the start's time."""
    start_us = low_us(row["final"]["start"])

    def speed(relative: NDArray) -> NDArray:
        return 2 * row["macs"] / (relative * start_us) / 1e3

    space = row["space"]
    ours = best_so_far([space["relative"][str(i)] for _, i, _ in row["ours"]["curve"]])
    budget = len(ours)
    _step(above, np.arange(1, budget + 1), speed(ours), "ours", "tvm-q4")
    _step(below, [s for s, _, _ in row["ours"]["curve"]], speed(ours), "ours", "tvm-q4")

    sample = [space["relative"][str(i)] for i in space["order"]]
    curves = random_curves(sample)[:, :budget]
    trials = np.arange(1, curves.shape[1] + 1)
    low, median, high = (
        speed(q) for q in np.quantile(curves, (0.9, 0.5, 0.1), axis=0, method="nearest")
    )
    for axis, x in ((above, trials), (below, trials * space["seconds_per_trial"])):
        axis.fill_between(x, low, high, step="post", alpha=0.2, color=_COLORS["random"], lw=0)
        _step(axis, x, median, "random", "random, median and 80 %")

    found = row["metaschedule"]["curve"]
    if found:
        peer = speed(best_so_far([value for _, value in found]))
        _step(above, np.arange(1, len(found) + 1), peer, "peer", "MetaSchedule")
        _step(below, [seconds for seconds, _ in found], peer, "peer", "MetaSchedule")
    below.axvline(row["ours"]["seconds"], color=_COLORS["ours"], lw=0.8, ls=":")


def _step(axis: Any, x: Any, y: NDArray, color: str, label: str) -> None:
    axis.step(x, y, where="post", color=_COLORS[color], lw=1.6, label=label)
