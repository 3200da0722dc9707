"""Training batches: complete, reproducible, shared without overlap, augmented as stated."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tests.quantize.training.tiny import data  # noqa: E402
from tvm_q4.quantize.training.batches import EpochBatches, augment  # noqa: E402
from tvm_q4.quantize.training.options import TrainingOptions  # noqa: E402

OPTIONS = TrainingOptions(batch_size=8, augment="none")


def _all(batches):
    return [batches[i] for i in range(len(batches))]


def test_an_epoch_has_every_image_once():
    source = data(40)
    x = torch.cat([x for x, _ in _all(EpochBatches(source, OPTIONS, 0))])
    y = torch.cat([y for _, y in _all(EpochBatches(source, OPTIONS, 0))])
    expected = source.read(0, 40)
    order = np.argsort(x[:, 0, 0, 0].numpy()), np.argsort(expected[:, 0, 0, 0])
    assert np.array_equal(x.numpy()[order[0]], expected[order[1]])
    assert np.array_equal(y.numpy()[order[0]], source.labels[order[1]])


def test_a_last_batch_that_is_not_whole_is_left_out():
    assert len(EpochBatches(data(39), OPTIONS, 0)) == 4


def test_order_depends_on_seed_and_epoch_only():
    source = data(40)

    def labels(epoch, seed=0):
        options = TrainingOptions(batch_size=40, augment="none", seed=seed)
        return EpochBatches(source, options, epoch)[0][1].tolist()

    assert labels(0) == labels(0)
    assert labels(0) != labels(1)
    assert labels(0) != labels(0, seed=1)


def test_processes_share_each_batch_augmentation_included():
    source = data(40)
    options = TrainingOptions(batch_size=8, augment="crop-flip")
    whole = EpochBatches(source, options, 1)[2]
    shares = [EpochBatches(source, options, 1, rank, 2)[2] for rank in (0, 1)]
    for rank in (0, 1):
        assert torch.equal(whole[0][rank::2], shares[rank][0])
        assert torch.equal(whole[1][rank::2], shares[rank][1])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_going_on_in_the_middle_gives_the_same_batches(workers):
    options = TrainingOptions(batch_size=8, workers=workers)
    batches = EpochBatches(data(40), options, 0)
    rest = list(batches.from_step(3))
    assert len(rest) == 2
    for step, (x, y) in zip((3, 4), rest, strict=True):
        assert torch.equal(x, batches[step][0])
        assert torch.equal(y, batches[step][1])


def _picture(height, width):
    return np.arange(2 * height * width, dtype=np.float32).reshape(1, 2, height, width)


def _draws(*values):
    return np.array(values, np.float32).reshape(3, 1)


@pytest.mark.parametrize("kind", ["flip", "crop-flip"])
def test_flips_mirror_columns(kind):
    x = _picture(5, 7)  # an eighth of these sides is 0: crops are whole images
    assert np.array_equal(augment(x, kind, _draws(0.9, 0.9, 0.2)), x[..., ::-1])
    assert np.array_equal(augment(x, kind, _draws(0.9, 0.9, 0.5)), x)


def test_crops_are_windows_of_the_mirrored_image():
    x = _picture(16, 9)
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (1, 1)), mode="reflect")
    assert np.array_equal(augment(x, "crop-flip", _draws(0, 0, 0.9)), padded[:, :, :16, :9])
    last = augment(x, "crop-flip", _draws(0.9999, 0.9999, 0.9))
    assert np.array_equal(last, padded[:, :, 4:, 2:])
    assert np.array_equal(augment(x, "crop-flip", _draws(0.5, 0.5, 0.9)), x)


def test_none_changes_nothing():
    x = _picture(16, 9)
    assert np.array_equal(augment(x, "none", _draws(0.1, 0.1, 0.1)), x)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.floats(0, 0.99), min_size=3, max_size=3),
)
def test_no_value_appears_that_the_image_has_not(height, width, draws):
    x = _picture(height, width)
    out = augment(x, "crop-flip", _draws(*draws))
    assert out.shape == x.shape and out.dtype == np.float32
    for channel in (0, 1):
        assert set(out[0, channel].flat) <= set(x[0, channel].flat)
