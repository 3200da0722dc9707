"""Fat binaries: what nvcc puts into them, and taking them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_q4.errors import EnvironmentMismatch, LibraryError
from tvm_q4.library import fatbin
from tvm_q4.library.fatbin import compile_fatbin, device_codes
from tvm_q4.library.nvcc import Tool, find_tool

SOURCE = """
extern "C" __global__ void fma_kernel(float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x] * 3.0f + y[threadIdx.x];
}
"""
needs_nvcc = pytest.mark.skipif(find_tool("nvcc") is None, reason="no nvcc here")


@needs_nvcc
def test_code_for_each_arch_and_ptx_of_one() -> None:
    codes = device_codes(compile_fatbin(SOURCE, [75, 80, 90], 90))
    kinds = sorted((code.kind, code.arch) for code in codes)
    assert kinds == [("cubin", 75), ("cubin", 80), ("cubin", 90), ("ptx", 90)]
    for code in codes:
        if code.kind == "cubin":
            assert code.data.startswith(b"\x7fELF")
        else:
            assert b".target sm_90" in code.data and code.data.isascii()
            assert code.name == "sm_90.ptx"


@needs_nvcc
def test_float_steps_are_not_contracted() -> None:
    (ptx,) = device_codes(compile_fatbin(SOURCE, [], 80))
    assert (ptx.kind, ptx.arch) == ("ptx", 80)
    assert b"mul" in ptx.data and b"fma.rn" not in ptx.data


@needs_nvcc
def test_wrong_source_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with pytest.raises(EnvironmentMismatch, match=r"error: .*nonsense") as caught:
        compile_fatbin("__global__ void k() { nonsense(); }", [75])
    assert "\n" not in str(caught.value)
    assert "nvcc failed" in caplog.text


def test_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text('#!/bin/sh\necho "$@" >"$0.arguments"\nfor last; do :; done\necho x >"$last"\n')
    nvcc.chmod(0o755)
    monkeypatch.setattr(fatbin.os, "cpu_count", lambda: 64)
    assert compile_fatbin("", [75, 89], 89, nvcc=Tool(nvcc, "test")) == b"x\n"
    arguments = (tmp_path / "nvcc.arguments").read_text()
    assert "-gencode arch=compute_75,code=sm_75 " in arguments
    assert "-gencode arch=compute_89,code=[sm_89,compute_89] " in arguments
    assert "--threads 2 " in arguments
    assert "fast" not in arguments and "--fmad=false" in arguments


@needs_nvcc
def test_damage() -> None:
    whole = compile_fatbin(SOURCE, [75], 75)
    for broken in (b"", whole[:10], whole[:-40], b"x" + whole[1:], whole[:17] + whole[18:] + b"?"):
        with pytest.raises(LibraryError) as caught:
            device_codes(broken)
        assert "\n" not in str(caught.value)
