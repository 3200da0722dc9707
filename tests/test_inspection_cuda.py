"""Inspecting CUDA libraries: what they hold, how int4 layers run, what is written out."""

from __future__ import annotations

from pathlib import Path

import pytest

import tvm_q4
from tests.library import tiny, tiny_cuda
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.library.nvcc import find_tool


@pytest.fixture
def emulated(tmp_path: Path) -> Path:
    return tiny_cuda.write_emulated(tmp_path / "a.so")


def test_int4_on_each_arch_and_on_those_that_are_not_inside(emulated: Path) -> None:
    notes = tvm_q4.inspect(emulated)["notes"]
    assert [note.split()[0] for note in notes] == ["sm_75:", "sm_80:", "sm_89:", "warning:"]
    assert "sm_90 and later emulate slowly" in notes[-1]


def test_code_for_sm_90_needs_no_warning(tmp_path: Path) -> None:
    target = CudaTarget((75, 90)).to_json()
    path = tiny_cuda.write_emulated(tmp_path / "a.so", target=target)
    notes = tvm_q4.inspect(path)["notes"]
    assert [note.split()[0] for note in notes] == ["sm_75:", "sm_90"]
    assert "widened in registers" in notes[1]


def test_without_int4_there_is_nothing_to_note(tmp_path: Path) -> None:
    layer = tiny_cuda.metadata()["layers"][0] | {"activation_bits": 8}
    path = tiny_cuda.write_emulated(tmp_path / "a.so", layers=[layer])
    assert tvm_q4.inspect(path)["notes"] == []


def test_cpu_libraries_have_no_notes(tmp_path: Path) -> None:
    assert tvm_q4.inspect(tiny.write(tmp_path / "a.so"))["notes"] == []


@pytest.mark.skipif(find_tool("nvcc") is None, reason="no nvcc here")
def test_extraction(tmp_path: Path) -> None:
    path = tiny_cuda.write(tmp_path / "a.so")
    tvm_q4.inspect(path, extract=tmp_path / "parts")
    names = {p.name for p in (tmp_path / "parts").iterdir()}
    assert {"metadata.json", "sm_75.fatbin", "sm_75.cubin", "sm_89.ptx"} < names
