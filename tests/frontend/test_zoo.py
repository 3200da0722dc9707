"""``zoo:`` models: names, determinism, live activations, specialisation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm

from tests.frontend.graphs import bindings, op_counts, q4_calls
from tvm_q4 import ops
from tvm_q4.errors import InputError
from tvm_q4.frontend import load_model
from tvm_q4.frontend.zoo import ZOO
from tvm_q4.meta import model_meta
from tvm_q4.reference import ReferenceExecutor

CIFAR = "zoo:resnet20-cifar"


def numbers(mod: tvm.IRModule) -> list[np.ndarray]:
    """Every constant of the q4 calls: integer weights, scales, zero points."""
    calls = [b.value for b in bindings(mod) if ops.is_q4(b.value)]
    consts = [a for c in calls for a in c.args if isinstance(a, tvm.ir.GenericConst)]
    return [ops.const_array(c) for c in consts]


def same(a: tvm.IRModule, b: tvm.IRModule) -> bool:
    """Whether two modules hold equal constants, bit for bit."""
    pairs = zip(numbers(a), numbers(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def cifar() -> tvm.IRModule:
    """Our ResNet-20 at W4A4, seed 0."""
    return load_model(f"{CIFAR}@uniform4")


def test_one_seed_gives_one_model_whatever_batch_size_and_threads(cifar: tvm.IRModule) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    torch.set_num_threads(2)
    try:
        again = load_model(f"{CIFAR}@uniform4", batch=3, image_size=(61, 45))
        assert torch.get_num_threads() == 2
        assert torch.initial_seed() == 99, "the caller's random state is left alone"
    finally:
        torch.set_num_threads(threads)
    assert same(cifar, again)
    assert not same(cifar, load_model(f"{CIFAR}@uniform4", seed=1))
    assert [int(d) for d in again["main"].params[0].ty.shape] == [3, 3, 61, 45]
    facts = model_meta(cifar)
    assert (facts["name"], facts["seed"], facts["transform"]) == (
        "resnet20-cifar@uniform4", 0, "cifar10",
    )  # fmt: skip


def test_every_activation_is_alive(cifar: tvm.IRModule) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32), "float32")
    tensors = ReferenceExecutor(cifar).trace(image)
    for name, attrs in q4_calls(cifar, "quantize").items():
        used = np.unique(tensors[name])
        assert len(used) >= 6, f"{name} takes only {used}"
        clipped = (tensors[name] == attrs["qmax"]).mean()
        assert clipped < 0.2, f"{clipped:.2f} of {name} is clipped"


def test_presets_and_config_files_set_the_bits(tmp_path: Path) -> None:
    config = {
        "format": "tvm-q4/bit-config", "version": 1, "default": {"weight": 4, "activation": 8},
        "layers": {"layer1.0.conv1": {"weight": 4, "activation": 4}},
    }  # fmt: skip
    (tmp_path / "bits.json").write_text(json.dumps(config))
    mod = load_model(f"{CIFAR}@{tmp_path / 'bits.json'}")
    limits = {n: a["qmax"] for n, a in q4_calls(mod, "dequantize").items()}
    assert limits["conv1.weight.dq"] == limits["fc.weight.dq"] == 127
    assert limits["layer1.0.conv1.weight.dq"] == limits["layer3.2.conv2.weight.dq"] == 7
    assert sorted(limits[n] for n in ("conv1.out.dq", "conv1.out.q2.dq")) == [15, 255]
    assert limits["layer1.0.conv1.out.dq"] == 255


def test_names_that_do_not_exist_are_one_line() -> None:
    cases = {
        "zoo:resnet19": "zoo model 'resnet19' does not exist; there are resnet18",
        "zoo:resnet18@": "names no bit config after @",
        "zoo:resnet18@uniform5": "'uniform5' is neither a preset",
    }
    for spec, words in cases.items():
        with pytest.raises(InputError, match=words) as error:
            load_model(spec)
        assert "\n" not in str(error.value)


def test_float_zoo_model_is_refused_only_where_it_must_be_quantized() -> None:
    with pytest.raises(InputError, match="float model; name a bit config"):
        load_model(CIFAR, require_quantized=True)
    mod = load_model(CIFAR, batch=2)
    counts = op_counts(mod)
    assert counts["relax.nn.batch_norm"] == 21 and not counts["q4.quantize"]
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32), "float32")
    assert ReferenceExecutor(mod).run(image).std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "convolutions", "groups"),
    [
        ("resnet18", 20, 1),
        ("resnet34", 36, 1),
        ("resnet50", 53, 1),
        ("resnext50_32x4d", 53, 32),
        ("inception_v3", 94, 1),
    ],
)
def test_torchvision_models_load_quantized(name: str, convolutions: int, groups: int) -> None:
    mod = load_model(f"zoo:{name}@uniform8", require_quantized=True)
    counts = op_counts(mod)
    assert counts["relax.nn.conv2d"] == convolutions and counts["relax.nn.batch_norm"] == 0
    calls = [b.value for b in bindings(mod) if hasattr(b.value, "op")]
    found = {int(c.attrs["groups"]) for c in calls if c.op.name == "relax.nn.conv2d"}
    assert found == {1, groups}
    size = ZOO[name].size
    assert [int(d) for d in mod["main"].params[0].ty.shape] == [1, 3, size, size]
    assert same(mod, load_model(f"zoo:{name}@uniform8"))
    if name == "resnext50_32x4d":
        assert "layer1.0.conv2.weight.dq" in q4_calls(mod)
