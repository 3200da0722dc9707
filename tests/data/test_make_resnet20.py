"""The example that makes a float ``.pt2`` of the published ResNet-20."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from tvm_q4.data import open_data  # noqa: E402
from tvm_q4.quantize.float_model import load_float_model  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "examples" / "quantize" / "make_resnet20.py"


def test_its_answers_are_the_published_ones(data_dir: Callable[..., Path], tmp_path: Path) -> None:
    folder = data_dir("resnet20-cifar10")
    images = data_dir("cifar10", "test_a.npz")
    path = tmp_path / "resnet20.pt2"
    command = [sys.executable, SCRIPT, "--weights", folder / "resnet20.safetensors", "-o", path]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    model = load_float_model(path)
    assert model.batch is None and model.metadata["classes"][3] == "cat"
    x = open_data(images, model.input, transform=model.metadata["transform"]).read(0, 50)
    with torch.no_grad():
        found = model.program.module()(torch.from_numpy(x)).numpy()
    recorded = np.load(folder / "resnet20_logits_test_a.npy")[:50]
    np.testing.assert_allclose(found, recorded, atol=1e-4)  # float arithmetic, another order
