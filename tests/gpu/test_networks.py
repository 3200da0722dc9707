"""Whole networks on a real GPU, bit for bit, launched and as one CUDA graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import small_network
from tests.data.nvidia import dequantized, read_inputs, read_reference
from tests.data.test_verify_zoo import MIXED, ODD
from tests.gpu.bodies import check_library
from tests.gpu.conftest import Compile
from tvm_q4.frontend import load_model
from tvm_q4.frontend.recipe import read_recipe
from tvm_q4.library import cuda_device, load
from tvm_q4.meta import model_meta

pytestmark = pytest.mark.gpu

CONFIGS = ("uniform8", "uniform4", "w4a8", "MIXED")


@pytest.fixture
def spec(model: str, config: str, tmp_path: Path) -> str:
    """A zoo model with one of the configs, the mixed one written to a file."""
    if config == "MIXED":
        file = tmp_path / "mixed.json"
        file.write_text(json.dumps(MIXED), encoding="utf-8")
        config = str(file)
    return f"zoo:{model}@{config}"


def test_small_network(compiled: Compile, gpu: cuda_device.CudaDevice) -> None:
    module = small_network.quantized()
    library = check_library(compiled(module), module, seeds=range(3))
    assert library.device == str(gpu)


@pytest.mark.parametrize("model", ["resnet20-cifar"])
@pytest.mark.parametrize("config", CONFIGS)
def test_odd_sizes(compiled: Compile, spec: str) -> None:
    module = load_model(spec, batch=3, image_size=ODD)
    check_library(compiled(module), module)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize("config", CONFIGS)
def test_imagenet(compiled: Compile, spec: str, batch: int) -> None:
    module = load_model(spec, batch=batch, image_size=(224, 224))
    check_library(compiled(module), module)


@pytest.mark.parametrize("graph", [False, True])
def test_recorded_integers_of_nvidia(
    compiled: Compile, data_dir: Callable[..., Path], graph: bool
) -> None:
    folder = data_dir("nvidia-resnet50-w4a4")
    reference, inputs = read_reference(folder), read_inputs(folder, 4)
    path = compiled(folder, batch=2, integer_output=True)
    library = load(path, cuda_graph=graph)
    for x in (inputs, dequantized(inputs)):
        np.testing.assert_array_equal(library.run(x), reference["fc_acc"][:4])
    logits = library.logits(library.run(inputs))
    np.testing.assert_array_equal(logits.argmax(1), reference["top1"][:4])
    trace = library.trace(inputs[:2])
    aliases = model_meta(read_recipe(folder))["tensor_aliases"]
    stored = {k[3:]: v for k, v in reference.items() if k.startswith(("fm.", "in."))}
    found = {k: trace[aliases.get(k, k)] for k in stored if aliases.get(k, k) in trace}
    # The others live in registers, or in the shared memory of the stem's kernel.
    assert len(found) >= 20
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor[: len(stored[name])], stored[name], name)
