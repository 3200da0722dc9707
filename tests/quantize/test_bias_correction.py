"""Bias correction: means of quantized layers against those of the float network."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tests.quantize.prepared import Residual, images, network, observing, quantizing  # noqa: E402
from tvm_q4.quantize import quantize_ptq  # noqa: E402
from tvm_q4.quantize.bias_correction import (  # noqa: E402
    correct_biases,
    float_means,
    give_biases,
)
from tvm_q4.quantize.ptq import calibrate  # noqa: E402
from tvm_q4.quantize.switchable import floating, start_quantizing  # noqa: E402
from tvm_q4.quantize.units import channel_means, subgraph, units_of  # noqa: E402


def test_channel_means_become_those_of_the_float_network():
    x = images(64)
    prepared = observing(network(Residual), x)
    give_biases(prepared)
    calibrate(prepared, [x])
    start_quantizing(prepared)
    units = units_of(prepared)
    layers = [layer for unit in units for layer in unit.layers]
    whole = subgraph(prepared, units[0].source, layers)
    with floating(whole):
        wanted = channel_means(whole, x, None)
    before = channel_means(whole, x, None)
    quantized = exact = x
    for unit in units:
        with floating(unit.module):
            target = unit.run(exact)
        correct_biases(prepared, unit, quantized, float_means(prepared, unit, exact))
        quantized, exact = unit.run(quantized), target
    for found, old, mean in zip(channel_means(whole, x, None), before, wanted, strict=True):
        assert float((old - mean).abs().max()) > 1e-4
        assert float((found - mean).abs().max()) < 1e-5


def test_layers_without_bias_get_one_of_zeros():
    x = images()
    prepared = quantizing(network(Residual), x)
    with torch.no_grad():
        expected = prepared(x)
        give_biases(prepared)
        assert torch.equal(prepared(x), expected)
    layers = [layer for unit in units_of(prepared) for layer in unit.layers]
    assert all(layer.args[2] is not None for layer in layers)


def test_corrected_biases_are_in_the_program_under_their_layers_names():
    x, model = images(64), network(Residual)
    plain = quantize_ptq(model, (x[:2],), [x], "uniform4", bias_correction=False)
    corrected = quantize_ptq(model, (x[:2],), [x], "uniform4", bias_correction=True)
    assert "b.bias" not in plain.state_dict
    assert set(corrected.state_dict) == {*plain.state_dict, "b.bias"}
    assert corrected.state_dict["b.bias"].any()
    assert torch.equal(corrected.state_dict["b.weight"], plain.state_dict["b.weight"])
    with torch.no_grad():
        wanted = model(x).mean(0)
        errors = [(p.module()(x).mean(0) - wanted).abs().max() for p in (plain, corrected)]
    assert errors[1] < 0.01 * errors[0]
