"""Two orders of the same layers, compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Return ranks from 1 for the largest value; equal values share the mean of their ranks."""
    _, index, counts = np.unique(-np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[index]


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Return Spearman's rank correlation; None where all values of one side are equal."""
    first, second = ranks(a), ranks(b)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def compare_rankings(
    names: Sequence[str], weights_only: ArrayLike, with_activations: ArrayLike
) -> dict[str, Any]:
    """Say where the order of layers changes when activations count.

    Parameters
    ----------
    names : sequence of str
    weights_only, with_activations : array_like of float [layers]
        Sensitivities.

    Returns
    -------
    dict
        ``spearman``, and ``moved``: layers whose rank differs, the farthest first, each with
        ``name`` and both ranks (1 is the most sensitive).
    """
    before, after = ranks(weights_only), ranks(with_activations)
    order = sorted(range(len(names)), key=lambda i: (-abs(after[i] - before[i]), before[i]))
    return {
        "spearman": spearman(weights_only, with_activations),
        "moved": [
            {"name": names[i], "weights_only": before[i], "with_activations": after[i]}
            for i in order
            if before[i] != after[i]
        ],
    }
