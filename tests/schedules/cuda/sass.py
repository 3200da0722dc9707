"""Machine code of kernels, for tests of what nvcc made of them."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import tvm

from tests.cuda_emulator.prim_func import lower as lower_func
from tests.schedules.cuda.builders import lower
from tvm_q4.library.fatbin import compile_fatbin, device_codes
from tvm_q4.library.nvcc import find_tool
from tvm_q4.schedules.cuda.pipeline import tir_pipeline
from tvm_q4.schedules.rule import ScheduleRule

needs_sass = pytest.mark.skipif(
    find_tool("nvcc") is None or find_tool("nvdisasm") is None,
    reason="needs nvcc and nvdisasm (packages nvidia-cuda-nvcc and nvidia-cuda-nvdisasm)",
)


def sass(mod: tvm.IRModule, kind: str, arch: int, rules: list[ScheduleRule] | None = None) -> str:
    """Instructions of the kernels of a module's only layer of that kind, one a line."""
    lowered = lower(mod, arch, rules)
    (call,) = [c for c in lowered.calls if c.layer.kind == kind]
    kernels = lower_func(lowered.mod[call.kernel], f"sm_{arch}", tir_pipeline())
    return "\n".join(disassembled(source, arch) for source in {k.source for k in kernels})


def disassembled(source: str, arch: int) -> str:
    """Instructions of CUDA text that is compiled as libraries are."""
    (code,) = device_codes(compile_fatbin(source, [arch]))
    nvdisasm = find_tool("nvdisasm")
    assert nvdisasm is not None
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(code.data)
        listing = nvdisasm.run("-c", str(cubin))
    found = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(.*?);", listing, re.MULTILINE)
    assert found, "nvdisasm failed"
    return "\n".join(found)
