"""Cross-layer equalization: which pairs, the same function, and "auto"."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from torch import nn  # noqa: E402

from tests.quantize.prepared import Chain, Residual, images, network, observing  # noqa: E402
from tvm_q4.quantize.constants import LAYER_KEY  # noqa: E402
from tvm_q4.quantize.equalization import equalize_units, pairs_in  # noqa: E402
from tvm_q4.quantize.switchable import floating, quantizers_in  # noqa: E402
from tvm_q4.quantize.units import units_of  # noqa: E402


class Branched(nn.Module):
    """Pairs that must be left alone: another reader, ReLU6, a weight read twice; one grouped."""

    def __init__(self):
        super().__init__()
        self.stem, self.read_twice, self.clipped = (nn.Conv2d(c, 8, 1) for c in (3, 8, 8))
        self.twice, self.plain = (nn.Conv2d(8, 8, 1) for _ in range(2))
        self.grouped = nn.Conv2d(8, 4, 1, groups=4)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (self.read_twice(x) + x).relu()
        x = nn.functional.relu6(self.clipped(x))
        x = self.twice(self.twice(x).relu()).relu()
        return self.last(self.grouped(self.plain(x).relu()))


def names(pairs):
    return [(pair.first.meta[LAYER_KEY], pair.second.meta[LAYER_KEY]) for pair in pairs]


def every_layer(units):
    return tuple(layer for unit in units for layer in unit.layers)


def ranges(prepared, first, second):
    return (
        prepared.get_parameter(f"{first}.weight").abs().amax((1, 2, 3)),
        prepared.get_parameter(f"{second}.weight").abs().amax((0, 2, 3)),
    )


def test_function_stays_and_ranges_become_equal():
    x, model = images(), network(Chain)
    prepared = observing(model, x)
    done = equalize_units(prepared, units_of(prepared), x, True)
    assert names(done) == [("one", "two"), ("two", "three")]
    with floating(prepared), torch.no_grad():
        torch.testing.assert_close(prepared(x), model(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*ranges(prepared, "two", "three"), rtol=1e-5, atol=0)
    assert not torch.equal(prepared.get_parameter("one.weight"), model.one.weight)


def test_only_plain_relus_with_one_reader_and_unshared_weights():
    x, model = images(), network(Branched)
    prepared = observing(model, x)
    units = units_of(prepared)
    assert names(pairs_in(every_layer(units))) == [("plain", "grouped")]
    equalize_units(prepared, units, x, True)
    with floating(prepared), torch.no_grad():
        torch.testing.assert_close(prepared(x), model(x), rtol=1e-5, atol=1e-6)


def test_dead_channels_are_left_alone():
    x, model = images(), network(Chain)
    with torch.no_grad():
        model.one.weight[2] = 0.0
        model.two.weight[:, 4] = 0.0
    prepared = observing(model, x)
    equalize_units(prepared, units_of(prepared), x, True)
    assert torch.isfinite(prepared.get_parameter("two.weight")).all()
    assert torch.equal(prepared.get_parameter("one.weight")[4], model.one.weight[4])


def skewed():
    """A block whose inner channels differ in size by powers of 4, undone by its second layer."""
    model = network(Residual)
    factors = 4.0 ** torch.arange(-4, 4)
    with torch.no_grad():
        model.bn.weight *= factors
        model.bn.bias *= factors
        model.b.weight /= factors[None, :, None, None]
    return model


def test_auto_equalizes_where_it_helps_and_only_there():
    x = images()
    for model, expected in ((skewed(), [("a", "b")]), (network(Residual), None)):
        prepared = observing(model, x)
        before = {n: p.detach().clone() for n, p in prepared.named_parameters()}
        done = equalize_units(prepared, units_of(prepared), x, "auto")
        changed = [n for n, p in prepared.named_parameters() if not torch.equal(p, before[n])]
        assert bool(changed) == bool(done)
        assert expected is None or names(done) == expected
        assert not any(q.learning for q in quantizers_in(prepared))
        with floating(prepared), torch.no_grad():
            torch.testing.assert_close(prepared(x), model(x), rtol=1e-4, atol=1e-4)
