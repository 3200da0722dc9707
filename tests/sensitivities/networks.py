"""A tiny calibrated network, and its loss as a function of one layer's weight or input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.quantize.prepared import network
from tvm_q4.quantize.ptq import export
from tvm_q4.sensitivities.network import FloatNetwork, LayerCall


class Tiny(nn.Module):
    """Stem, a block with batch normalisation and a shortcut convolution, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, bias=False)
        self.a = nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 1)
        self.short = nn.Conv2d(3, 4, 1, stride=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """From [N, 2, 7, 6] to [N, 3]."""
        x = self.stem(x).relu()
        x = (self.b(self.bn(self.a(x)).relu()) + self.short(x)).relu()
        return self.fc(x.mean([2, 3]))


SHAPE = (2, 7, 6)
LAYERS = ["stem", "a", "b", "short", "fc"]


def images(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random inputs [N, 2, 7, 6] and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *SHAPE, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def model(kind: type[nn.Module] = Tiny) -> nn.Module:
    """Return the network with weights large enough for gradients to differ."""
    found = network(kind)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(2.0)
    return found


def float_network(
    count: int = 6, kind: type[nn.Module] = Tiny, network: nn.Module | None = None
) -> FloatNetwork:
    """Return a calibrated float network; the layers of `Tiny` are as in `LAYERS`."""
    x, _ = images(count)
    found = FloatNetwork(export(network or model(kind), (x[:2],)), (x[:2],))
    found.calibrate([x])
    return found


def loss_with_weight(net: FloatNetwork, index: int, weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy with another weight in one layer."""

    def hook(call: LayerCall) -> Tensor:
        return call.compute(call.x, weight if call.index == index else call.layer.weight)

    return cross_entropy(net.run(x, hook), y)


def loss_with_input(net: FloatNetwork, index: int, added: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy with something added to the input of one layer."""

    def hook(call: LayerCall) -> Tensor:
        value = call.x + added if call.index == index else call.x
        return call.compute(value, call.layer.weight)

    return cross_entropy(net.run(x, hook), y)


def inputs_of(net: FloatNetwork, x: Tensor) -> dict[str, Tensor]:
    """Return the layers' inputs."""
    found: dict[str, Tensor] = {}

    def hook(call: LayerCall) -> Tensor:
        found[call.layer.name] = call.x
        return call.compute(call.x, call.layer.weight)

    net.run(x, hook)
    return found
