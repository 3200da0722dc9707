"""Learned rounding: against rounding to nearest, its integers in the program, its options."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tests.quantize.prepared import Chain, Residual, images, network, quantizing  # noqa: E402
from tvm_q4.errors import InputError  # noqa: E402
from tvm_q4.quantize import BitConfig, LayerBits, quantize_ptq  # noqa: E402
from tvm_q4.quantize.adaround import AdaRoundOptions, SoftRounding, learn_rounding  # noqa: E402
from tvm_q4.quantize.ptq import convert  # noqa: E402
from tvm_q4.quantize.switchable import floating  # noqa: E402
from tvm_q4.quantize.units import units_of  # noqa: E402

SHORT = AdaRoundOptions(iterations=40, batch_size=16, rounding_rate=0.1)


def block(prepared, x):
    """Return the network's block with its quantized input and float output."""
    first, unit, _ = units_of(prepared)
    with floating(prepared):
        target = unit.run(first.run(x))
    return unit, first.run(x), target


def error(unit, x, y):
    return float((unit.run(x) - y).square().mean())


def learn(seed=0, options=SHORT, config="uniform4"):
    x = images(32)
    prepared = quantizing(network(Residual), x, config)
    unit, start, target = block(prepared, x)
    before = error(unit, start, target)
    learn_rounding(prepared, unit, start, target, options, torch.Generator().manual_seed(seed))
    return prepared, before, error(unit, start, target)


def state(prepared):
    return {name: p.detach().clone() for name, p in prepared.named_parameters()}


def test_soft_weight_starts_at_the_float_one_and_is_decided_up_or_down():
    weight = torch.linspace(-2.0, 2.0, 40).reshape(2, 20)
    scale = torch.tensor([0.25, 0.3])
    rounding = SoftRounding(weight, scale, -7, 7)
    limit = (7 * scale)[:, None]
    expected = weight.clamp(-limit, limit)
    torch.testing.assert_close(rounding(weight), expected, rtol=1e-4, atol=1e-5)
    nearest = (weight / scale[:, None]).round().clamp(-7, 7) * scale[:, None]
    torch.testing.assert_close(rounding.decided(), nearest)
    with torch.no_grad():
        rounding.up.fill_(5.0)
    up = ((weight / scale[:, None]).floor() + 1).clamp(-7, 7) * scale[:, None]
    with torch.no_grad():
        assert torch.equal(rounding.decided(), up) and torch.equal(rounding(weight), up)
        assert float(rounding.penalty(2.0)) == 0.0


def test_block_comes_nearer_to_the_float_one_than_by_rounding_to_nearest():
    _, before, after = learn()
    assert after < 0.9 * before


def test_program_holds_the_learned_integers():
    prepared, _, _ = learn()
    x = images(32)
    learned = {}
    for unit in units_of(prepared):
        for layer in unit.layers:
            quantizer = prepared.get_submodule(layer.args[1].target)
            weight = prepared.get_parameter(layer.args[1].args[0].target).detach()
            scale = quantizer.calculate_qparams()[0].reshape(-1, *[1] * (weight.ndim - 1))
            learned[layer.meta["q4_layer"]] = (weight.double() / scale.double(), scale)
    nearest = quantizing(network(Residual), x)
    with torch.no_grad():
        expected = prepared(x)
    program = convert(prepared, (x[:2],))
    for name in ("a", "b"):
        ratio, scale = learned[name]
        stored = program.state_dict[f"{name}.weight"]
        assert stored.dtype == torch.int8 and int(stored.abs().max()) <= 7
        assert torch.equal(stored.double(), ratio.round())
        assert float((ratio - ratio.round()).abs().max()) < 1e-6
        assert torch.equal(program.state_dict[f"{name}.weight_scale"], scale.flatten())
    rounded = convert(nearest, (x[:2],)).state_dict["a.weight"]
    moved = program.state_dict["a.weight"].int() - rounded.int()
    assert moved.any() and int(moved.abs().max()) == 1
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-3, atol=1e-3)


def test_seed_decides():
    first, again, other = (state(learn(seed)[0]) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_is_no_better_than_nearest_is_put_back():
    untouched = state(quantizing(network(Residual), images(32)))
    worse = AdaRoundOptions(iterations=2, rounding_rate=1e3, step_rate=0.5)
    prepared, before, after = learn(options=worse)
    assert after == before
    assert all(torch.equal(value, untouched[name]) for name, value in state(prepared).items())


def test_steps_are_learned_or_not():
    x = images(32)
    scales = {n: v for n, v in state(quantizing(network(Residual), x)).items() if "scale" in n}
    learned = state(learn()[0])
    fixed = state(learn(options=AdaRoundOptions(iterations=40, rounding_rate=0.1, step_rate=0))[0])
    assert not all(torch.equal(learned[name], value) for name, value in scales.items())
    assert all(torch.equal(fixed[name], value) for name, value in scales.items())


def test_eight_bit_weights_are_rounded_to_nearest():
    untouched = state(quantizing(network(Residual), images(32), "uniform8"))
    prepared, _, _ = learn(config="uniform8")
    assert all(torch.equal(value, untouched[name]) for name, value in state(prepared).items())


def test_whole_recipe_lowers_the_error_and_takes_programs_of_one_batch_size():
    x, model = images(32), network(Chain)
    bits = LayerBits(4, 8)
    config = BitConfig(bits, {"one": bits, "three": LayerBits(8, 8), "fc": bits})
    program = torch.export.export(model, (x[:4],))
    options = {"equalize": "auto", "rounding": "adaround"}
    plain = quantize_ptq(program, (x[:4],), x.split(4), config, bias_correction=False)
    best = quantize_ptq(
        program, (x[:4],), x.split(4), config, rounding_options=SHORT, seed=3, **options
    )
    with torch.no_grad():
        wanted = model(x)
        errors = [
            sum(float((p.module()(part) - y).square().sum()) for part, y in
                zip(x.split(4), wanted.split(4), strict=True))
            for p in (plain, best)
        ]  # fmt: skip
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"iterations": 0}, "iterations is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rounding_rate": 0.0}, "rounding_rate is 0.0; it must be above 0"),
        ({"step_rate": -1.0}, "step_rate is -1.0"),
        ({"penalty": -1.0}, "penalty is -1.0"),
        ({"warm_up": 1.0}, "warm_up is 1.0"),
        ({"sharpness": (20.0, 0.5)}, "sharpness is"),
    ],
)
def test_options_out_of_range_are_errors(option, message):
    with pytest.raises(InputError, match=message):
        AdaRoundOptions(**option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equalize": "maybe"}, "equalize is 'maybe'"),
        ({"rounding": "up"}, "rounding is 'up'; use nearest or adaround"),
        ({"rounding_options": SHORT}, "rounding_options are for rounding='adaround'"),
    ],
)
def test_unknown_options_are_errors(options, message):
    x = images(2)
    with pytest.raises(InputError, match=message):
        quantize_ptq(network(Chain), (x,), [x], "uniform4", **options)


def test_images_of_different_sizes_and_no_images_are_errors():
    x, model = images(2), network(Residual)
    with pytest.raises(InputError, match=r"shapes \[3, 8, 8\] and \[3, 8, 9\]"):
        sizes = [x, torch.zeros(2, 3, 8, 9)]
        quantize_ptq(model, (x,), sizes, "uniform4", bias_correction=True)
    with pytest.raises(InputError, match="no calibration batches"):
        quantize_ptq(model, (x,), [], "uniform4", rounding="adaround")
