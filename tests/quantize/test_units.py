"""Cutting a prepared graph into units, and what they compute."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tests.quantize.prepared import Chain, Residual, images, network, observing, quantizing  # noqa: E402
from tvm_q4.quantize import refine  # noqa: E402
from tvm_q4.quantize.constants import LAYER_KEY  # noqa: E402
from tvm_q4.quantize.switchable import floating  # noqa: E402
from tvm_q4.quantize.units import channel_means, fixed_batch, subgraph, units_of  # noqa: E402

BLOCKS = [["stem"], ["a", "b"], ["fc"]]
LAYERS = [["one"], ["two"], ["three"], ["fc"]]


@pytest.mark.parametrize(("kind", "names"), [(Residual, BLOCKS), (Chain, LAYERS)])
def test_units_are_blocks_or_layers_and_compute_the_network(kind, names):
    x, model = images(), network(kind)
    prepared = quantizing(model, x)
    units = units_of(prepared)
    assert [[layer.meta[LAYER_KEY] for layer in unit.layers] for unit in units] == names
    quantized = exact = x
    for unit in units:
        quantized = unit.run(quantized)
        with floating(unit.module):
            exact = unit.run(exact)
    with torch.no_grad():
        assert torch.equal(quantized, prepared(x))
        torch.testing.assert_close(exact, model(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(quantized, exact, rtol=1e-3, atol=1e-3)


def test_units_take_any_batch_unless_the_graph_does_not():
    x, model = images(), network(Chain)
    assert fixed_batch(observing(model, x)) is None
    program = torch.export.export(model, (x[:4],))
    prepared = observing(program, x[:4])
    assert fixed_batch(prepared) == 4
    y = x
    for unit in units_of(prepared):
        y = unit.run(y)
    with torch.no_grad():
        torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)


def test_subgraph_gives_several_outputs_and_shares_parameters():
    x = images()
    prepared = observing(network(Residual), x)
    unit = units_of(prepared)[1]
    part = subgraph(prepared, unit.source, unit.layers)
    start = torch.rand(2, 8, 8, 8)
    with torch.no_grad():
        a, b = part(start)
        assert a.shape == b.shape == start.shape
        prepared.get_parameter("b.weight").zero_()
        assert not part(start)[1].any()
    means = channel_means(part, start, 1)
    torch.testing.assert_close(means[0], a.double().mean((0, 2, 3)))


def test_as_many_images_are_used_as_fit_in_memory(monkeypatch):
    x = images()
    units = units_of(observing(network(Residual), x))
    assert refine._most_images(units) == (1 << 27) // (8 * 8 * 8)
    monkeypatch.setattr(refine, "_MOST_VALUES", 3 * 512 + 1)
    assert refine._most_images(units) == 3
    fixed = units_of(observing(torch.export.export(network(Residual), (x[:2],)), x[:2]))
    assert refine._most_images(fixed) == 2


def test_means_of_a_linear_layer_go_by_its_last_axis():
    x = torch.randn(5, 7)
    (mean,) = channel_means(lambda part: part, x, 2)
    torch.testing.assert_close(mean, x.double().mean(0))
