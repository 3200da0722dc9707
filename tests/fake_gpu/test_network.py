"""Whole networks, from the model to a library that TVM's CUDA runtime runs on the emulated GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.cuda_emulator.build import compiler
from tvm_q4.library.cuda_device import load_runtime
from tvm_q4.library.nvcc import find_tool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None, reason="no C++ compiler here"),
    pytest.mark.skipif(find_tool("nvcc") is None, reason="no nvcc here"),
    pytest.mark.skipif(load_runtime() is None, reason="there is an NVIDIA driver here"),
]


def run(arch: int, target: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fake_gpu.run_network", str(arch), target]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def report_of(arch: int, target: str) -> dict[str, Any]:
    done = run(arch, target)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_the_emulator_refuses_fails() -> None:
    """int4 kernels of sm_75 on sm_90: there the driver would emulate each product."""
    done = run(90, "cuda:sm_75")
    assert done.returncode
    assert "LibraryError" in done.stderr and "failed on Emulator (sm_90)" in done.stderr


@pytest.mark.parametrize(
    ("arch", "target", "family"),
    [
        (75, "cuda:sm_75,sm_90", 75),
        (80, "cuda:sm_75,sm_80", 80),
        (89, "cuda:sm_80", 80),
        (90, "cuda:sm_80,sm_90", 90),
    ],
)
def test_bit_exact_with_the_reference(arch: int, target: str, family: int) -> None:
    report = report_of(arch, target)
    assert report["error"] is None
    assert report["family"] == family
    assert all(name.endswith(f"_sm{family}") for name in report["kernels"])
    assert report["launched"] > report["replayed"] > 0, "launched, and replayed as a CUDA graph"
