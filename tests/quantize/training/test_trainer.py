"""The training loop: it learns, goes on bit for bit where it stopped, and refuses bad input."""

import logging
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from tests.quantize.training.tiny import data, network  # noqa: E402
from tvm_q4.errors import EnvironmentMismatch, InputError  # noqa: E402
from tvm_q4.quantize.training import TrainingOptions, train  # noqa: E402
from tvm_q4.quantize.training import trainer as module  # noqa: E402

OPTIONS = TrainingOptions(epochs=3, learning_rate=0.05, batch_size=8, device="cpu")


def _train(model, options=OPTIONS, **kwargs):
    return train(model.train(), data(40), options, progress=False, **kwargs)


def _equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_says_how_it_goes(caplog):
    caplog.set_level(logging.INFO, "tvm_q4")
    history = _train(network(), replace(OPTIONS, epochs=6, learning_rate=0.02))
    assert [result.epoch for result in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].loss < 0.7 * history[0].loss
    assert history[-1].accuracy > 0.8
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("epoch")]
    assert lines[5].startswith(f"epoch 6/6: loss {history[5].loss:.4f}")


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    one, two, other = (network(dropout=0.5) for _ in range(3))
    _train(one)
    torch.manual_seed(99)  # the caller's random state does not matter
    _train(two)
    _train(other, replace(OPTIONS, seed=1))
    assert _equal(one, two)
    assert not _equal(one, other)


def test_the_callers_random_state_is_kept():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model, state = network(), torch.get_rng_state()
    _train(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("steps", [3, 5, 7, 15])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch, steps):
    """Five steps make an epoch; the run stops after `steps`, a checkpoint after each step."""
    whole, halves = network(dropout=0.5), network(dropout=0.5)
    expected = _train(whole)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    done = []

    def stop(*_):
        done.append(1)
        if len(done) > steps:
            raise _Stopped

    hook = halves.register_forward_pre_hook(stop)
    path = tmp_path / "checkpoint.pt"
    if steps < 15:
        with pytest.raises(_Stopped):
            _train(halves, checkpoint=path)
    else:
        _train(halves, checkpoint=path)
    hook.remove()
    again = network(seed=7, dropout=0.5)
    history = _train(again, checkpoint=path)
    assert _equal(whole, again)
    assert [(r.loss, r.accuracy) for r in history] == [(r.loss, r.accuracy) for r in expected]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    _train(network(), replace(OPTIONS, epochs=1), checkpoint=path)
    with pytest.raises(InputError, match=r"was made with learning_rate 0\.05, this run has 0\.01"):
        _train(network(), replace(OPTIONS, epochs=1, learning_rate=0.01), checkpoint=path)
    with pytest.raises(InputError, match="was made with bits None, this run has 4"):
        _train(network(), replace(OPTIONS, epochs=1), checkpoint=path, settings={"bits": 4})


def test_the_teacher_pulls_the_student_to_its_answers():
    teacher = network(seed=1).eval()
    x = torch.from_numpy(data(40).read(0, 40))
    options = replace(OPTIONS, distill=1.0, temperature=1.0, augment="none")

    def distance(model):
        with torch.no_grad():
            return float((model.eval()(x).softmax(1) - teacher(x).softmax(1)).abs().mean())

    student = network(seed=2)
    before = distance(student)
    _train(student, options, teacher=teacher)
    assert distance(student) < 0.5 * before
    alone, ignored = network(), network()
    _train(alone)
    _train(ignored, teacher=teacher)
    assert _equal(alone, ignored)


def test_on_epoch_is_called_before_each_epoch():
    seen = []
    _train(network(), on_epoch=seen.append)
    assert seen == [0, 1, 2]


def test_data_that_cannot_be_trained_on():
    with pytest.raises(InputError, match="no labels"):
        train(network(), data(40, labels=False), OPTIONS)
    with pytest.raises(InputError, match="has 7 images, fewer than one batch of 8"):
        train(network(), data(7), OPTIONS)


def test_devices_that_are_not_there():
    with pytest.raises(InputError, match="device is 'tpu'"):
        _train(network(), replace(OPTIONS, device="tpu"))
    with pytest.raises(EnvironmentMismatch, match="torch sees"):
        _train(network(), replace(OPTIONS, device="cuda:99"))
