"""Bad input for GPUs: one line that says what to do, exit code 2, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Tool
from tests.library import tiny_cuda
from tvm_q4.library.cuda_device import load_runtime
from tvm_q4.library.nvcc import find_tool

needs_nvcc = pytest.mark.skipif(find_tool("nvcc") is None, reason="no nvcc here")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A library that must not appear."""
    return tmp_path / "out" / "x.so"


@pytest.fixture(autouse=True)
def nothing_written(out: Path):
    out.parent.mkdir()
    yield
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    "target", ["cuda:sm_99", "cuda:", "cuda:sm_80,sm_70", "nvidia/nvidia-v100"]
)
def test_an_arch_that_there_is_not(tool: Tool, pt2: Path, out: Path, target: str) -> None:
    line = tool("compile", pt2, "--target", target, "-o", out).refused()
    assert repr(target) in line and "choose of sm_75, sm_80" in line


@needs_nvcc
def test_a_batch_beyond_what_kernels_count(tool: Tool, pt2: Path, out: Path) -> None:
    options = ("--target", "cuda:sm_80", "--batch", "40000000")
    line = tool("compile", pt2, *options, "-o", out).refused()
    assert "[40000000, 3, 8, 9]" in line and "smaller batch" in line


def test_no_nvcc(tool: Tool, pt2: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_q4.library.nvcc._places", lambda _name: iter(()))
    monkeypatch.delenv("TVM_Q4_NVCC", raising=False)
    line = tool("compile", pt2, "--target", "cuda:sm_75", "-o", out).refused()
    assert "nvcc" in line and 'pip install "tvm-q4[cuda]"' in line


@needs_nvcc
@pytest.mark.skipif(load_runtime() is None, reason="there is an NVIDIA driver here")
def test_no_gpu(tool: Tool, tmp_path: Path) -> None:
    library = tiny_cuda.write(tmp_path / "tiny.so")
    assert "no NVIDIA driver" in tool("bench", library).refused()
