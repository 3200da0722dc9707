"""Both estimates of the traces against the exact Hessian, block by block."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tests.sensitivities.networks import (  # noqa: E402
    LAYERS,
    float_network,
    images,
    inputs_of,
    loss_with_input,
    loss_with_weight,
)
from tvm_q4.sensitivities.metric import standard_error  # noqa: E402
from tvm_q4.sensitivities.traces import ESTIMATORS, rademacher  # noqa: E402


@pytest.fixture(scope="module")
def net():
    return float_network()


@pytest.fixture(scope="module")
def exact(net) -> torch.Tensor:
    """Traces of weights and of inputs, [layers, 2], from whole Hessians."""
    x, y = images()
    inputs = inputs_of(net, x)
    rows = []
    for i, layer in enumerate(net.layers):
        row = []
        for function, at in (
            (loss_with_weight, layer.weight),
            (loss_with_input, torch.zeros_like(inputs[layer.name])),
        ):
            hessian = torch.autograd.functional.hessian(
                lambda value, i=i, f=function: f(net, i, value, x, y), at
            )
            row.append(hessian.reshape(at.numel(), at.numel()).trace())
        rows.append(torch.stack(row))
    return torch.stack(rows).double()


@pytest.mark.parametrize(("name", "count"), [("gauss-newton", 200), ("hessian-vector", 120)])
def test_estimates_meet_the_exact_traces(net, exact, name: str, count: int) -> None:
    x, y = images()
    generator = torch.Generator().manual_seed(1)
    samples = torch.stack([ESTIMATORS[name](net, x, y, generator, True) for _ in range(count)])
    error = standard_error(samples)
    assert [layer.name for layer in net.layers] == LAYERS
    assert ((samples.mean(0) - exact).abs() <= 3.5 * error + 1e-6 * exact).all()
    # The stated error is small enough for the test to mean something.
    assert (error < 0.15 * exact).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_weights_alone_are_the_first_column(net, name: str) -> None:
    x, y = images()
    alone = ESTIMATORS[name](net, x, y, torch.Generator().manual_seed(2), False)
    assert alone.shape == (len(LAYERS), 1)
    if name == "gauss-newton":
        both = ESTIMATORS[name](net, x, y, torch.Generator().manual_seed(2), True)
        assert torch.equal(alone[:, 0], both[:, 0])


def test_gauss_newton_needs_no_labels_and_is_never_negative(net) -> None:
    x, y = images()
    first, second = (
        ESTIMATORS["gauss-newton"](net, x, labels, torch.Generator().manual_seed(3), True)
        for labels in (y, y.flip(0))
    )
    assert torch.equal(first, second)
    assert (first >= 0).all()


def test_probes_are_signs_that_the_seed_decides() -> None:
    like = torch.zeros(40, 50)
    probe, again, other = (
        rademacher(like, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert probe.dtype == like.dtype and (probe.abs() == 1).all()
    assert abs(float(probe.mean())) < 0.1
    assert torch.equal(probe, again) and not torch.equal(probe, other)
