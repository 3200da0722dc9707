"""Quantization-aware training: gradients, both batch-norm schemes, and what convert makes of it."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from torch import nn  # noqa: E402

from tvm_q4.errors import UnsupportedError  # noqa: E402
from tvm_q4.models.resnet_cifar import CifarResNet  # noqa: E402
from tvm_q4.quantize import convert, prepare_qat  # noqa: E402
from tvm_q4.quantize.fake_quantize import LearnedStepFakeQuantize, _LearnedStep  # noqa: E402

aten = torch.ops.aten


def seeded_model():
    torch.manual_seed(0)
    model = CifarResNet(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def train_steps(prepared, x, y, steps, lr=0.01):
    optimizer = torch.optim.SGD(prepared.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(prepared(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(1,), (3, 1)])
def test_gradients_of_the_learned_step_are_those_of_its_definition(shape):
    torch.manual_seed(3)
    x = torch.randn(3, 200, dtype=torch.float64) * 3
    scale = torch.rand(shape, dtype=torch.float64) + 0.1
    grad = torch.randn_like(x)
    low, high = -7, 7
    x1, s1 = x.clone().requires_grad_(), scale.clone().requires_grad_()
    values = 200
    out = _LearnedStep.apply(x1, s1, low, high, values)
    out.backward(grad)
    ratio = x / scale
    clipped = ratio.clamp(low, high)
    assert torch.equal(out.detach(), ratio.round().clamp(low, high) * scale)
    x2, s2 = x.clone().requires_grad_(), scale.clone().requires_grad_()
    v = (x2 / s2).clamp(low, high)
    ((clipped.round() - clipped) + v).mul(s2).backward(grad)
    share = 1.0 / (values * high) ** 0.5
    assert torch.allclose(x1.grad, x2.grad)
    assert torch.allclose(s1.grad, s2.grad * share)


@pytest.mark.parametrize("batch_norm", ["fold", pytest.param("train", marks=pytest.mark.slow)])
def test_training_lowers_the_loss_and_convert_keeps_the_function(batch_norm):
    model = seeded_model()
    x, y = torch.randn(16, 3, 16, 16), torch.randint(0, 10, (16,))
    prepared = prepare_qat(model, (x,), [x], "uniform4", batch_norm=batch_norm)
    assert all(p.requires_grad for p in prepared.parameters())
    before = {n: p.detach().clone() for n, p in prepared.named_parameters()}
    losses = train_steps(prepared, x, y, steps=8)
    assert losses[-1] < losses[0]
    unmoved = [n for n, p in prepared.named_parameters() if torch.equal(p, before[n])]
    assert not unmoved
    program = convert(prepared, (x,))
    operators = {n.target for n in program.graph.nodes if n.op == "call_function"}
    assert not operators & {
        aten.batch_norm.default,
        aten.div.Tensor,
        aten.mul.Tensor,
        aten.sqrt.default,
    }
    assert {"conv1.weight", "layer2.0.downsample.0.weight_scale", "fc.bias"} <= set(
        program.state_dict
    )
    assert program.state_dict["layer1.0.conv1.weight"].dtype == torch.int8
    if batch_norm == "fold":
        with torch.no_grad():
            assert torch.equal(program.module()(x), prepared(x))


def test_scales_start_at_the_observed_ones_and_are_exported():
    model = seeded_model()
    x = torch.randn(8, 3, 16, 16)
    prepared = prepare_qat(model, (x,), [x], "uniform8")
    quantizers = [m for m in prepared.modules() if isinstance(m, LearnedStepFakeQuantize)]
    assert quantizers
    for module in quantizers:
        assert torch.equal(module.scale.detach(), module.observer.calculate_qparams()[0])
        module.scale.data.mul_(2.0)
    first = next(m for m in quantizers if m.quant_min == -128)
    program = convert(prepared, (x,))
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    scales = [n.args[1] for n in program.graph.nodes if n.target is quantize]
    assert first.scale.item() in scales


def test_float_model_is_left_as_it_was():
    model = seeded_model().eval()
    x = torch.randn(4, 3, 16, 16)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = prepare_qat(model, (x,), [x], "uniform4")
    train_steps(prepared, x, torch.randint(0, 10, (4,)), steps=2)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_program_is_trained_as_a_copy_and_only_folded():
    x, y = torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))
    program = torch.export.export(seeded_model().eval(), (x,))
    state = {name: value.clone() for name, value in program.state_dict.items()}
    prepared = prepare_qat(program, (x,), [x], "uniform8")
    losses = train_steps(prepared, x, y, steps=3)
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, state[name]) for name, value in program.state_dict.items())
    with pytest.raises(UnsupportedError, match="fixed batch statistics"):
        prepare_qat(program, (x,), [x], "uniform8", batch_norm="train")


def test_other_eps_is_refused_where_pt2e_would_fold_wrongly():
    model = seeded_model()
    model.bn1.eps = 1e-3
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(UnsupportedError, match=r"'bn1' has eps 0\.001"):
        prepare_qat(model, (x,), [x], "uniform8", batch_norm="train")
