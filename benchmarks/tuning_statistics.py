"""Numbers of the tuning benchmark: best-so-far curves, and trials until a speed is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 1000
SHARE = 0.95
"""Part of our search's final speed whose trials are counted."""


def best_so_far(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Least value up to each trial; infinite before the first that has one."""
    plain = [np.inf if value is None else value for value in values]
    return np.minimum.accumulate(np.array(plain, np.float64))


def trials_to(curve: NDArray[np.float64], time: float) -> int | None:
    """Trials until a best-so-far curve is at `time` or below; None where it never is."""
    reached = np.flatnonzero(curve <= time)
    return int(reached[0]) + 1 if reached.size else None


def random_curves(
    values: Sequence[float | None], count: int = PERMUTATIONS, seed: int = 0
) -> NDArray[np.float64]:
    """Best-so-far curves of random search without repetition: [count, trials].

    Parameters
    ----------
    values : sequence of float or None
        Measured times of settings, the whole space or a random part of it.
    count : int
        Permutations.
    seed : int
    """
    plain = np.array([np.inf if value is None else value for value in values], np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permutation(plain) for _ in range(count)])
    return np.minimum.accumulate(drawn, axis=1)


def median_trials(curves: NDArray[np.float64], time: float) -> float | None:
    """Median over curves of the trials until `time`; None where most never reach it."""
    found = [trials_to(curve, time) for curve in curves]
    median = float(np.median([np.inf if n is None else n for n in found]))
    return median if np.isfinite(median) else None


def summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says of one layer; None for what is not known.

    Parameters
    ----------
    row : mapping
        A layer of the report: ``ours``, and ``space`` and ``metaschedule`` where they ran.
    """
    out: dict[str, Any] = {"trials_ours": None, "trials_random": None, "random_of": None}
    space = row.get("space")
    if space:
        # Both are read from the same measurements, each setting measured once.
        relative = space["relative"]
        ours = best_so_far([relative[str(i)] for _, i, _ in row["ours"]["curve"]])
        target = float(ours[-1]) / SHARE
        sample = [relative[str(i)] for i in space["order"]]
        out["trials_ours"] = trials_to(ours, target)
        out["trials_random"] = median_trials(random_curves(sample), target)
        out["random_of"] = len(sample)
    return out
