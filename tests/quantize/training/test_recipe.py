"""`train_qat`: both methods, batch-norm freezing, resumed runs, and labels that do not fit."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tests.quantize.training.tiny import CLASSES, SHAPE, data, network  # noqa: E402
from tvm_q4.data import Dataset  # noqa: E402
from tvm_q4.errors import InputError  # noqa: E402
from tvm_q4.quantize import TrainingOptions, prepare_qat, train_qat  # noqa: E402
from tvm_q4.quantize import graph as g  # noqa: E402
from tvm_q4.quantize.qat import freeze_batch_norm  # noqa: E402

OPTIONS = TrainingOptions(epochs=2, learning_rate=1e-3, batch_size=8, device="cpu")
EXAMPLE = (torch.zeros(2, *SHAPE),)


def _images():
    return torch.from_numpy(data(40).read(0, 40))


def _train(model, options=OPTIONS, labelled=None, **kwargs):
    return train_qat(
        model, EXAMPLE, [_images()], labelled or data(40), "uniform4", options,
        progress=False, **kwargs,
    )  # fmt: skip


def _scales(program):
    q = torch.ops.quantized_decomposed.quantize_per_tensor.default
    return [n.args[1:] for n in program.graph.nodes if n.target is q]


@pytest.mark.parametrize("method", ["lsq", "fake-quantize"])
def test_both_methods_give_the_grids_of_the_integer_arithmetic(method):
    program, history = _train(network().eval(), method=method)
    assert [result.epoch for result in history] == [1, 2]
    found = _scales(program)
    assert [args[1] for args in found] == [0] * len(found)
    assert [args[2:4] for args in found] == [(-128, 127), (0, 15), (0, 255), (0, 255)]
    state = program.state_dict
    assert state["3.weight"].dtype == torch.int8 and state["3.weight"].abs().max() <= 7
    assert not state["3.weight_zero_point"].any()
    with torch.no_grad():
        assert program.module()(_images()).shape == (40, CLASSES)


def test_the_float_model_stays_as_it_was():
    model = network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _train(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_frozen_batch_norm_keeps_its_statistics():
    x = _images()
    prepared = prepare_qat(network(), EXAMPLE, [x], "uniform4", batch_norm="train")

    def statistics():
        return [b.clone() for n, b in prepared.named_buffers() if "running" in n]

    before = statistics()
    prepared(x)
    changed = statistics()
    assert not all(map(torch.equal, before, changed))
    freeze_batch_norm(prepared)
    prepared(x)
    assert all(map(torch.equal, changed, statistics()))
    assert any(g.called(node, g.BATCH_NORMS) for node in prepared.graph.nodes)


def test_a_finished_run_goes_on_to_the_same_program(tmp_path):
    path = tmp_path / "checkpoint.pt"
    whole, _ = _train(network().eval(), checkpoint=path)
    again, _ = _train(network().eval(), checkpoint=path)
    assert _scales(whole) == _scales(again)
    with torch.no_grad():
        assert torch.equal(whole.module()(_images()), again.module()(_images()))
    with pytest.raises(InputError, match="was made with residual_bits 8, this run has 4"):
        _train(network().eval(), checkpoint=path, residual_bits=4)
    with pytest.raises(InputError, match="was made with model"):
        _train(network(seed=3).eval(), checkpoint=path)


@pytest.mark.slow
def test_batch_norm_is_trained_until_it_is_frozen():
    options = replace(OPTIONS, learning_rate=1e-9)
    frozen, _ = _train(network().eval(), options, batch_norm="train", bn_freeze_epoch=0)
    folded, _ = _train(network().eval(), options)
    trained, _ = _train(network().eval(), options, batch_norm="train", bn_freeze_epoch=1)
    with torch.no_grad():
        f, g, t = (p.module()(_images()) for p in (frozen, folded, trained))
    assert (f - g).abs().mean() < 0.2 * (t - g).abs().mean()


def test_labels_beyond_the_classes_are_refused():
    source = data(40)
    wrong = Dataset(40, source.read, np.full(40, CLASSES))
    with pytest.raises(InputError, match=r"label 4 .* network's 4 classes \(0\.\.3\)"):
        _train(network().eval(), labelled=wrong)


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="method is 'ste'; use one of lsq, fake-quantize"):
        _train(network().eval(), method="ste")


def test_bfloat16_is_refused():
    with pytest.raises(InputError, match="bfloat16 is on"):
        _train(network().eval(), replace(OPTIONS, bfloat16=True))
