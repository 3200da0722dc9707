"""What ``doctor`` finds: compilers, CPU features, kernel forms, and what cannot work here."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tvm_q4 import environment
from tvm_q4.quant import IntRange
from tvm_q4.schedules.cpu.dot import dot_forms
from tvm_q4.targets import parse_target


def program(folder: Path, name: str, output: str) -> Path:
    """An executable that prints `output`."""
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, with nothing in it but ``sh`` and ``cat``."""
    for name in ("sh", "cat"):
        (tmp_path / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    for name in ("CC", "TVM_Q4_NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_without_a_compiler_libraries_run_but_cannot_be_made(bare: Path) -> None:
    report = environment.doctor()
    assert not report["ok"]
    assert any("no C++ compiler" in problem for problem in report["problems"])
    assert (report["targets"]["llvm"]["compile"], report["targets"]["llvm"]["run"]) == (False, True)


def test_compilers_are_those_that_linking_would_take(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare, "clang++", "clang 1")
    assert environment.doctor()["compilers"]["c++"]["version"] == "clang 1"
    program(bare, "g++", "g++ 2\nmore")
    assert environment.doctor()["compilers"]["c++"]["version"] == "g++ 2"
    monkeypatch.setenv("CC", "clang++")
    assert environment.doctor()["compilers"]["c++"]["version"] == "clang 1"
    monkeypatch.setenv("CXX", "missing")
    assert environment.doctor()["compilers"]["c++"] is None


NVCC = """case "$1" in
--version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
--list-gpu-code) printf "sm_75\\nsm_90\\n" ;;
esac"""


def nvcc(folder: Path) -> None:
    path = program(folder, "nvcc", "")
    path.write_text(f"#!/bin/sh\n{NVCC}\n")


def test_gpus_and_nvcc_are_read_from_their_tools(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare, "nvidia-smi", "NVIDIA T4, 7.5, 580.1\nNVIDIA A100, 8.0, 580.1")
    program(bare, "g++", "g++ 2")
    nvcc(bare)
    monkeypatch.setattr(environment, "_cuda_problem", lambda: None)
    report = environment.doctor()
    assert [g["compute_capability"] for g in report["gpus"]] == ["7.5", "8.0"]
    assert report["compilers"]["nvcc"] == {
        "path": str(bare / "nvcc"),
        "version": "13.0, V13.0.88",
        "found": "PATH",
    }
    can = {name: (t["compile"], t["run"]) for name, t in report["targets"].items()}
    assert can["cuda:sm_75"] == (True, True)
    assert can["cuda:sm_80"] == (False, True)
    assert can["cuda:sm_89"] == (False, False)
    assert can["cuda:sm_90"] == (True, False)
    assert "no int4 tensor cores" in report["targets"]["cuda:sm_90"]["note"]


def test_a_gpu_without_tvms_runtime_runs_nothing(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare, "nvidia-smi", "NVIDIA T4, 7.5, 580.1")
    nvcc(bare)
    monkeypatch.setattr(environment, "_cuda_problem", lambda: "libcudart.so.13 is missing")
    report = environment.doctor()
    assert report["cuda"] == "libcudart.so.13 is missing"
    # nvcc needs the C++ compiler, which is not there.
    assert report["targets"]["cuda:sm_75"]["compile"] is False
    assert report["targets"]["cuda:sm_75"]["run"] is False


def test_without_cuda(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_tool", lambda _: None)
    report = environment.doctor()
    assert report["compilers"]["nvcc"] is None and report["gpus"] == []
    cuda = {name: t for name, t in report["targets"].items() if name.startswith("cuda")}
    assert len(cuda) == 4
    assert not any(t["compile"] or t["run"] for t in cuda.values())


def test_kernel_forms_are_those_of_the_schedules() -> None:
    report = environment.doctor()
    target = parse_target("llvm")
    assert report["cpu"]["kernel_forms"] == {
        "w8a8": dot_forms(target, IntRange(0, 255), 8)[0].name,
        "w4a4": dot_forms(target, IntRange(0, 15), 4)[0].name,
    }
    assert report["versions"]["apache-tvm"] == "0.27.0.post1"
