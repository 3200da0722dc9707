"""A learned ranking of candidates: gradient-boosted trees over their features.

The method is that of AutoTVM (Chen et al., "Learning to Optimize Tensor Programs", NeurIPS 2018,
section 3) with parameters and derived features in place of loop features. One model serves all
signatures of a rule: it learns the logarithm of a candidate's time over the time of its layer's
start candidate, so what one layer teaches ranks the candidates of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import EnvironmentMismatch

FEWEST_ROWS = 12
"""Measurements below which the rule's prediction ranks better than a model."""

_TREES = 80
_PARAMETERS = {
    "objective": "reg:squarederror",
    "max_depth": 5,
    "eta": 0.15,
    "min_child_weight": 1,
    "subsample": 0.9,
    "nthread": 1,
    "verbosity": 0,
}


def require_xgboost() -> Any:
    """The package xgboost.

    Raises
    ------
    EnvironmentMismatch
        If it is not installed.
    """
    try:
        import xgboost
    except ModuleNotFoundError as error:
        msg = f'tuning needs {error.name}; install it with: pip install "tvm-q4[tune]"'
        raise EnvironmentMismatch(msg) from error
    return xgboost


class CostModel:
    """Predicts relative times of candidates of one rule.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed, self._model = seed, None

    def fit(self, rows: Sequence[NDArray[np.float32]], relative: Sequence[float]) -> None:
        """Learn from all measurements; does nothing while there are too few.

        Parameters
        ----------
        rows : sequence of ndarray [features]
        relative : sequence of float
            Times over the time of the layer's start candidate.
        """
        if len(relative) < FEWEST_ROWS:
            return
        xgboost = require_xgboost()
        data = xgboost.DMatrix(np.stack(list(rows)), np.log(relative))
        self._model = xgboost.train(_PARAMETERS | {"seed": self._seed}, data, _TREES)

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Predicted logarithm of the relative times; None before anything was learned."""
        if self._model is None:
            return None
        return self._model.predict(require_xgboost().DMatrix(rows))
