"""The float network: the same function, the layers' names and numbers, the same quantizers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from torch import nn  # noqa: E402

from tests.sensitivities.networks import LAYERS, float_network, images, model  # noqa: E402
from tvm_q4.quantize import quantize_ptq  # noqa: E402


@pytest.fixture(scope="module")
def net():
    return float_network()


def test_it_computes_what_the_model_does(net) -> None:
    x, _ = images()
    with torch.no_grad():
        wanted = model()(x)
    assert torch.allclose(net.run(x), wanted, atol=1e-5)
    hooked = net.run(x, lambda call: call.compute(call.x, call.layer.weight))
    assert torch.equal(hooked, net.run(x))


def test_layers(net) -> None:
    assert [layer.name for layer in net.layers] == LAYERS
    assert [layer.fixed for layer in net.layers] == [True, False, False, False, True]
    # Outputs of the convolutions are 5x4 and three times 3x2.
    assert [layer.macs for layer in net.layers] == [54 * 20, 108 * 6, 16 * 6, 12 * 6, 12]
    assert net.ties() == [["a", "short"]]


def test_weights_are_those_that_quantize_writes(net) -> None:
    x, _ = images()
    program = quantize_ptq(model(), (x[:2],), [x], "uniform4", bias_correction=False)
    for i, layer in enumerate(net.layers):
        scale = program.state_dict[f"{layer.name}.weight_scale"]
        written = program.state_dict[f"{layer.name}.weight"].float()
        written = written * scale.reshape(-1, *[1] * (written.ndim - 1))
        for bits in (4, 8) if layer.fixed else (4,):
            assert torch.equal(net.quantized_weight(i, bits), written), layer.name


def test_inputs_lie_on_the_grid_of_their_bits(net) -> None:
    values = torch.linspace(0, 3, 301)
    for bits in (4, 8):
        quantized = net.quantized_input(1, bits, values)
        assert len(quantized.unique()) <= 1 << bits
    coarse, fine = ((net.quantized_input(1, b, values) - values).abs().mean() for b in (4, 8))
    assert fine < coarse / 4


class Odd(nn.Module):
    """A module that is called twice, groups, padding by name, and a fixed batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.twice = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.fc = nn.Linear(80, 3)

    def forward(self, x):
        """From [N, 2, 7, 6] to [N, 3]."""
        x = self.twice(self.twice(self.stem(x).relu()).relu()).relu()
        return self.fc(x.flatten(1))


def test_a_module_that_is_called_twice_is_one_layer() -> None:
    net = float_network(kind=Odd)
    assert [layer.name for layer in net.layers] == ["stem", "twice", "fc"]
    seen: list[int] = []

    def hook(call):
        seen.append(call.index)
        return call.compute(call.x, call.layer.weight)

    net.run(images()[0], hook)
    assert seen == [0, 1, 1, 2]
