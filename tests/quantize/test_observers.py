"""Observers against direct NumPy computations of the same definitions."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tvm_q4.quantize.observers import (  # noqa: E402
    MinMaxObserver,
    MseObserver,
    MseWeightObserver,
    PercentileObserver,
)

UNSIGNED = {"dtype": torch.uint8, "qscheme": torch.per_tensor_symmetric}
CHANNELS = {"dtype": torch.int8, "qscheme": torch.per_channel_symmetric}


def squared_error(x, scale, low, high):
    rounded = np.clip(np.round(x / scale), low, high) * scale
    return float(((rounded - x) ** 2).sum())


def test_minmax_keeps_the_largest_magnitude_over_batches():
    observer = MinMaxObserver(quant_min=0, quant_max=15, **UNSIGNED)
    for values in ([0.5, 3.0], [0.1], [1.5]):
        observer(torch.tensor(values))
    scale, zero = observer.calculate_qparams()
    assert scale.tolist() == [np.float32(3.0) / np.float32(15)]
    assert zero.tolist() == [0] and zero.dtype == torch.int64


def test_minmax_per_channel_is_symmetric():
    observer = MinMaxObserver(quant_min=-7, quant_max=7, **CHANNELS)
    observer(torch.tensor([[1.0, -7.0], [0.0, 0.0], [-14.0, 3.5]]).reshape(3, 2, 1, 1))
    scale, zero = observer.calculate_qparams()
    assert scale[0] == 1.0 and scale[2] == 2.0
    assert 0 < scale[1] < 1e-6
    assert zero.tolist() == [0, 0, 0]


@pytest.mark.parametrize("limit", [7, 127])
def test_mse_weight_scale_is_the_best_of_its_candidates(limit):
    rng = np.random.default_rng(0)
    weight = rng.standard_t(3, size=(5, 4, 3, 3)).astype(np.float32)
    observer = MseWeightObserver(quant_min=-limit, quant_max=limit, **CHANNELS)
    observer(torch.from_numpy(weight))
    scale = observer.calculate_qparams()[0].numpy()
    for channel, chosen in zip(weight, scale, strict=True):
        top = np.abs(channel).max()
        errors = [
            squared_error(channel, top * (k / 50) / limit, -limit, limit) for k in range(13, 51)
        ]
        assert squared_error(channel, chosen, -limit, limit) <= min(errors) * (1 + 1e-5)


def test_mse_weight_clips_an_outlier_at_four_bit():
    weight = torch.full((1, 400), 1.0)
    weight[0, ::2] = -1.0
    weight[0, 0] = 4.0
    observer = MseWeightObserver(quant_min=-7, quant_max=7, **CHANNELS)
    observer(weight)
    assert float(observer.calculate_qparams()[0]) * 7 < 4.0


def test_histogram_keeps_every_count_when_its_range_grows():
    rng = np.random.default_rng(1)
    batches = [rng.uniform(0, top, size=1000).astype(np.float32) for top in (0.3, 7.0, 1.0, 100.0)]
    observer = PercentileObserver(quant_min=0, quant_max=255, **UNSIGNED)
    for batch in batches:
        observer(torch.from_numpy(batch))
    assert int(observer.counts.sum()) == 4000
    values = np.concatenate(batches)
    assert observer.top >= values.max()
    below = int(observer.counts[: observer.counts.numel() // 2].sum())
    assert below == int((values < observer.top / 2).sum())


def test_percentile_ignores_one_outlier_in_a_million():
    values = torch.linspace(0, 1, 1_000_000)
    values[0] = 50.0
    observer = PercentileObserver(quant_min=0, quant_max=255, **UNSIGNED)
    observer(values)
    limit = float(observer.find_limit())
    assert abs(limit - 0.9999) <= observer.top / 4096 + 1e-4


@pytest.mark.parametrize("quant_max", [15, 255])
def test_mse_activation_scale_beats_minmax(quant_max):
    values = np.abs(np.random.default_rng(2).laplace(size=20000)).astype(np.float32)
    observer = MseObserver(quant_min=0, quant_max=quant_max, **UNSIGNED)
    observer(torch.from_numpy(values))
    chosen = float(observer.calculate_qparams()[0])
    best = squared_error(values, chosen, 0, quant_max)
    assert best <= squared_error(values, values.max() / quant_max, 0, quant_max)
    grid = [values.max() * k / 40 / quant_max for k in range(1, 41)]
    assert best <= 1.02 * min(squared_error(values, scale, 0, quant_max) for scale in grid)


@pytest.mark.parametrize("cls", [MinMaxObserver, PercentileObserver, MseObserver])
def test_all_zero_tensor_gives_a_positive_scale(cls):
    observer = cls(quant_min=0, quant_max=255, **UNSIGNED)
    observer(torch.zeros(3, 4))
    assert float(observer.calculate_qparams()[0]) > 0


def test_no_data_is_an_error():
    with pytest.raises(RuntimeError, match="seen no data"):
        MinMaxObserver(quant_min=0, quant_max=255, **UNSIGNED).calculate_qparams()
