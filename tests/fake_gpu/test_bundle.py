"""A bundle's own program on the emulated GPU: machine code loaded, tensors copied, bits right."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cuda_emulator.build import compiler
from tvm_q4.library.cuda_device import load_runtime
from tvm_q4.library.nvcc import find_tool

pytest.importorskip("xgboost")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None, reason="no C++ compiler here"),
    pytest.mark.skipif(find_tool("nvcc") is None, reason="no nvcc here"),
    pytest.mark.skipif(load_runtime() is None, reason="there is an NVIDIA driver here"),
]


@pytest.mark.parametrize("arch", [75, 80])
def test_a_candidate_is_exact(arch: int) -> None:
    command = [sys.executable, "-m", "tests.fake_gpu.measure_bundle", str(arch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["device"], found["device_arch"]) == ("Emulator", arch)
    assert found["exact"] == [True] and found["launched"] >= 3
    assert found["times_us"][0][0] > 0
