"""Libraries for CUDA hold machine code and no source; what they hold can be taken out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.library import tiny_cuda
from tvm_q4.errors import EnvironmentMismatch, InputError
from tvm_q4.library import read_metadata
from tvm_q4.library.device_code import read_fatbins, write_device_code
from tvm_q4.library.fatbin import device_codes
from tvm_q4.library.nvcc import VARIABLE, find_tool

needs_nvcc = pytest.mark.skipif(find_tool("nvcc") is None, reason="no nvcc here")


@pytest.fixture(scope="module")
def cuda_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cuda.write(tmp_path_factory.mktemp("tiny_cuda") / "tiny.so")


@needs_nvcc
def test_machine_code_for_each_arch_and_ptx_of_the_newest(cuda_path: Path) -> None:
    families = [device_codes(fatbin) for fatbin in read_fatbins(cuda_path)]
    found = sorted(sorted((code.kind, code.arch) for code in codes) for codes in families)
    assert found == [[("cubin", 75)], [("cubin", 80), ("cubin", 89), ("ptx", 89)]]
    for codes in families:
        family = "sm75" if codes[0].arch == 75 else "sm80"
        for code in codes:
            assert f"double_{family}_kernel".encode() in code.data
            assert f"head_{family}_kernel".encode() in code.data


@needs_nvcc
@pytest.mark.parametrize("text", ["__global__", 'extern "C"', "__launch_bounds__", "__shared__"])
def test_no_source(cuda_path: Path, text: str) -> None:
    assert text.encode() not in cuda_path.read_bytes()


@needs_nvcc
def test_metadata_is_readable(cuda_path: Path) -> None:
    metadata = read_metadata(cuda_path)
    assert metadata["target"] == {"kind": "cuda", "archs": [75, 80, 89], "ptx": 89, "device": None}


@needs_nvcc
def test_extraction(cuda_path: Path, tmp_path: Path) -> None:
    files = write_device_code(cuda_path, tmp_path)
    names = ["sm_75.cubin", "sm_75.fatbin", "sm_80-sm_89.fatbin"]
    names += ["sm_80.cubin", "sm_89.cubin", "sm_89.ptx"]
    assert (
        sorted(path.name for path in files) == sorted(p.name for p in tmp_path.iterdir()) == names
    )
    assert (tmp_path / "sm_80.cubin").read_bytes() in (tmp_path / "sm_80-sm_89.fatbin").read_bytes()
    with pytest.raises(InputError, match=r"cannot write '.*; give --extract a writable folder"):
        write_device_code(cuda_path, tmp_path / "missing")


@needs_nvcc
@pytest.mark.skipif(find_tool("cuobjdump") is None, reason="no cuobjdump here")
def test_nvidias_own_tool_reads_the_same(cuda_path: Path, tmp_path: Path) -> None:
    write_device_code(cuda_path, tmp_path)
    command = [find_tool("cuobjdump").path, "-lelf", "-lptx", tmp_path / "sm_80-sm_89.fatbin"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split(".")[-2:] for line in listing.split() if "sm_" in line] == [
        ["sm_80", "cubin"],
        ["sm_89", "cubin"],
        ["sm_89", "ptx"],
    ]


def test_cpu_libraries_hold_no_device_code(tiny_path: Path, tmp_path: Path) -> None:
    assert read_fatbins(tiny_path) == []
    assert write_device_code(tiny_path, tmp_path) == []


def test_a_failing_nvcc_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "nvcc"
    codes = "sm_75 sm_80 sm_89"
    nvcc.write_text(
        f'#!/bin/sh\n[ "$1" = --list-gpu-code ] && printf "%s\\n" {codes} && exit 0\n'
        '[ "$1" = --version ] && exit 0\necho "ptxas fatal: error: no registers left" >&2\nexit 1\n'
    )
    nvcc.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(nvcc))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EnvironmentMismatch, match=r"cannot compile .* no registers left") as caught:
        tiny_cuda.write(out / "a.so")
    assert "\n" not in str(caught.value)
    assert list(out.iterdir()) == []
