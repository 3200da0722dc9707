"""NVIDIA's compiler and disassemblers: where they are, and what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_q4.errors import EnvironmentMismatch, TargetError

INSTALL = 'pip install "tvm-q4[cuda]"'
VARIABLE = "TVM_Q4_NVCC"


@dataclass(frozen=True)
class Tool:
    """A program of the CUDA toolkit: its file, and what led to it (a variable, PATH, a package)."""

    path: Path
    origin: str

    def version(self) -> str:
        """Its release, such as ``13.2, V13.2.78``; empty where it does not say."""
        match = re.search(r"release (\S+, \S+)", self.run("--version"))
        return match[1] if match else ""

    def archs(self) -> list[int]:
        """Archs that nvcc makes machine code for."""
        return [int(arch) for arch in re.findall(r"^sm_(\d+)$", self.run("--list-gpu-code"), re.M)]

    def run(self, *arguments: str) -> str:
        """Standard output of a short call; empty where it fails."""
        command = [str(self.path), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout


def find_tool(name: str) -> Tool | None:
    """A program of the CUDA toolkit (nvcc, cuobjdump, nvdisasm), or None where it is not found.

    Looked for, in this order: for nvcc, the file that ``TVM_Q4_NVCC`` names; the folder that
    ``CUDA_HOME`` or ``CUDA_PATH`` names; PATH; the packages of the extra ``cuda``.
    """
    return next((tool for tool in _places(name) if os.access(tool.path, os.X_OK)), None)


def find_nvcc(archs: Sequence[int] = ()) -> Tool:
    """The nvcc that compiles kernels.

    Parameters
    ----------
    archs : sequence of int
        What it must be able to compile for.

    Raises
    ------
    EnvironmentMismatch
        If there is none.
    TargetError
        If it does not know one of `archs`.
    """
    named = os.environ.get(VARIABLE)
    if named and not os.access(named, os.X_OK):
        raise EnvironmentMismatch(f"{VARIABLE} names {named!r}, which is no program; correct it")
    nvcc = find_tool("nvcc")
    if nvcc is None:
        msg = f"compiling for CUDA needs nvcc, none was found; run: {INSTALL}, or set {VARIABLE}"
        raise EnvironmentMismatch(msg)
    _check_archs(nvcc, archs)
    return nvcc


def _check_archs(nvcc: Tool, archs: Sequence[int]) -> None:
    known = nvcc.archs() if archs else []
    unknown = [arch for arch in archs if arch not in known]
    if unknown:
        names = ", ".join(f"sm_{arch}" for arch in known) or "nothing"
        msg = (
            f"nvcc {nvcc.version()} ({nvcc.path}) does not compile for sm_{unknown[0]}, only for "
            f"{names}; choose of these, or run: {INSTALL} and set {VARIABLE} to its nvcc"
        )
        raise TargetError(msg)


def packaged_folders() -> list[Path]:
    """Folders into which NVIDIA's packages of the CUDA toolkit install (``nvidia/cu13``)."""
    roots = {Path(sysconfig.get_path(name)) / "nvidia" for name in ("purelib", "platlib")}
    return sorted((path for root in roots for path in root.glob("cu*")), reverse=True)


def _places(name: str) -> Iterator[Tool]:
    if name == "nvcc" and os.environ.get(VARIABLE):
        yield Tool(Path(os.environ[VARIABLE]), VARIABLE)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Tool(Path(os.environ[variable]) / "bin" / name, variable)
    found = shutil.which(name)
    if found:
        yield Tool(Path(found), "PATH")
    for folder in packaged_folders():
        yield Tool(folder / "bin" / name, f"package nvidia-cuda-{name}")
