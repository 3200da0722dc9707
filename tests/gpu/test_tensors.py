"""PyTorch's tensors on a real GPU, in and out through DLPack, and time by device events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tvm_q4
from tests import small_network
from tests.gpu.conftest import Compile
from tvm_q4.errors import InputError
from tvm_q4.library import Library, load

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def library(compiled: Compile) -> Library:
    return load(compiled(small_network.quantized()))


@pytest.fixture(scope="module")
def torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return module


def floats(library: Library, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(0, 1, library.input.shape)
    return x.astype(np.float32)


def test_in_and_out(library: Library, torch: Any) -> None:
    for seed in range(5):
        x = floats(library, seed)
        tensor = torch.from_numpy(x).cuda()
        result = torch.from_dlpack(library.run(tensor))
        out = torch.empty_like(result)
        assert library.run(tensor, out=out) is out
        for found in (result, out):
            assert found.is_cuda
            assert np.array_equal(found.cpu().numpy(), library.run(x))


def test_order_in_the_default_stream(library: Library, torch: Any) -> None:
    """What PyTorch queues before and after a run needs no wait in between."""
    x = floats(library)
    expected = library.run(x)
    busy = torch.ones(2048, 2048, device="cuda")
    for _ in range(20):
        busy = busy @ busy.clamp(max=1e-3)
        tensor = torch.from_numpy(x).cuda() + 0 * busy[0, 0].nan_to_num(0, 0, 0)
        result = torch.from_dlpack(library.run(tensor)) * 1
        tensor.zero_()
        assert np.array_equal(result.cpu().numpy(), expected)


def test_any_address(library: Library, torch: Any) -> None:
    x = floats(library)
    memory = torch.zeros(x.size + 64, device="cuda")
    for offset in (0, 1, 3, 16):
        view = memory[offset : offset + x.size].view(x.shape)
        view.copy_(torch.from_numpy(x))
        assert np.array_equal(library.run(view).numpy(), library.run(x))


def test_tensors_that_are_not_contiguous(library: Library, torch: Any) -> None:
    n, c, h, w = library.input.shape
    with pytest.raises(InputError, match="contiguous"):
        library.run(torch.zeros(n, c, w, h, device="cuda").transpose(2, 3))


def test_time_by_device_events(library: Library) -> None:
    report = tvm_q4.bench(library, warmup=1, repeats=3, min_ms=0, layers=True)
    assert report["timer"] == "device events"
    assert report["best_ms"] > 0
    assert [row["kernel"] for row in report["layers"]] == [
        call["kernel"] for call in library.metadata["calls"]
    ]
