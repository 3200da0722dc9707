"""Random inputs cover the range that a verification must cover."""

from __future__ import annotations

import numpy as np
import pytest

from tests.library import tiny
from tvm_q4.sample_input import sample_input


def _metadata(**quantized) -> dict:
    entry = tiny.metadata()["input"]
    changed = entry["quantized"] | quantized
    return {"input": entry | {"shape": [2, 3, 40, 50], "quantized": changed}}


@pytest.mark.parametrize(("lo", "hi", "zero"), [(-127, 127, 0), (-128, 127, -5), (0, 15, 3)])
def test_floats_reach_every_integer_ties_and_beyond(lo, hi, zero):
    metadata = _metadata(lo=lo, hi=hi, zero_point=zero, scale=0.02)
    x = sample_input(metadata, 2, dtype="float32", seed=1)
    assert x.dtype == np.float32 and x.shape == (2, 3, 40, 50)
    steps = x[np.isfinite(x)].astype(np.float64) / 0.02 + zero
    assert set(np.unique(np.clip(np.rint(steps), lo, hi))) == set(range(lo, hi + 1))
    assert steps.min() < lo - 1 and steps.max() > hi + 1
    assert (np.abs(steps - np.floor(steps) - 0.5) < 1e-3).mean() > 0.01
    assert np.isinf(x).sum() in (1, 2) and not np.isnan(x).any()


@pytest.mark.parametrize(("dtype", "lo", "hi"), [("int8", -128, 127), ("uint8", 0, 15)])
def test_integers_stay_in_range_and_reach_its_ends(dtype, lo, hi):
    metadata = _metadata(lo=lo, hi=hi)
    for seed in range(3):
        x = sample_input(metadata, 3, dtype=dtype, seed=seed)
        assert x.dtype == dtype and (x.min(), x.max()) == (lo, hi)


def test_float_networks_get_finite_numbers():
    metadata = {"input": {"shape": [2, 3, 8, 8], "quantized": None}}
    x = sample_input(metadata, 4, dtype="float32")
    assert np.isfinite(x).all() and x.std() > 0.3


def test_seeds():
    same = [sample_input(_metadata(), 2, dtype="float32", seed=s) for s in (0, 0, 1)]
    assert np.array_equal(same[0], same[1]) and not np.array_equal(same[0], same[2])
