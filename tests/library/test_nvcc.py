"""Finding nvcc: variables, PATH, packages; what is said where it is missing or too old."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_q4.errors import EnvironmentMismatch, TargetError
from tvm_q4.library import nvcc


def program(path: Path, archs: str = "sm_75 sm_80") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    listing = "\\n".join(archs.split())
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda tools, release 9.9, V9.9.1"\n'
        f'[ "$1" = --list-gpu-code ] && printf "{listing}\\n"\nexit 0\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without the CUDA toolkit."""
    for name in (nvcc.VARIABLE, "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(nvcc.sysconfig, "get_path", lambda _: str(tmp_path / "site"))
    return tmp_path


def test_none(bare: Path) -> None:
    assert nvcc.find_tool("nvcc") is None
    with pytest.raises(EnvironmentMismatch, match=r'pip install "tvm-q4\[cuda\]"') as caught:
        nvcc.find_nvcc([75])
    assert "\n" not in str(caught.value)


def test_places_in_their_order(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = program(bare / "site" / "nvidia" / "cu13" / "bin" / "nvcc")
    assert nvcc.find_nvcc() == nvcc.Tool(packaged, "package nvidia-cuda-nvcc")
    on_path = program(bare / "bin" / "nvcc")
    assert nvcc.find_nvcc() == nvcc.Tool(on_path, "PATH")
    home = program(bare / "toolkit" / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(bare / "toolkit"))
    assert nvcc.find_nvcc() == nvcc.Tool(home, "CUDA_HOME")
    named = program(bare / "mine")
    monkeypatch.setenv(nvcc.VARIABLE, str(named))
    assert nvcc.find_nvcc() == nvcc.Tool(named, nvcc.VARIABLE)


def test_other_programs_do_not_follow_the_variable(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nvcc.VARIABLE, str(program(bare / "mine")))
    assert nvcc.find_tool("cuobjdump") is None


def test_a_folder_without_nvcc_is_passed_over(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(bare / "empty"))
    on_path = program(bare / "bin" / "nvcc")
    assert nvcc.find_nvcc().path == on_path


def test_a_variable_that_names_nothing(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "bin" / "nvcc")
    monkeypatch.setenv(nvcc.VARIABLE, "/none/nvcc")
    with pytest.raises(EnvironmentMismatch, match="names '/none/nvcc', which is no program"):
        nvcc.find_nvcc()


def test_an_nvcc_that_does_not_know_the_arch(bare: Path) -> None:
    program(bare / "bin" / "nvcc")
    assert nvcc.find_nvcc([75, 80]).version() == "9.9, V9.9.1"
    with pytest.raises(TargetError, match=r"9\.9, V9\.9\.1 .* sm_90, only for sm_75, sm_80"):
        nvcc.find_nvcc([75, 90])
