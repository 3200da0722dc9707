"""Compile translated kernels with the host's C++ compiler."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cuda_emulator.errors import EmulationError

_HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fwrapv", "-fno-strict-aliasing")
_FLAGS += ("-ffp-contract=off", "-U_FORTIFY_SOURCE")
_KERNEL_FLAGS = ("-O1", "-Werror=uninitialized")
_RUNTIME = ("memory", "scheduler", "collectives")


def compiler() -> str | None:
    """Path of the C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def _folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="tvm-q4-emulator-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _run(*arguments: str) -> None:
    command = compiler()
    if command is None:
        raise EmulationError("there is no C++ compiler (g++, or what CXX names)")
    result = subprocess.run(
        [command, *_FLAGS, *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise EmulationError(f"the translated kernel does not compile:\n{result.stderr[:4000]}")


@functools.cache
def _runtime() -> tuple[str, ...]:
    objects = [str(_folder() / f"{name}.o") for name in _RUNTIME]
    for name, path in zip(_RUNTIME, objects, strict=True):
        _run("-O2", "-c", str(_HERE / f"{name}.cpp"), "-o", path)
    # The compiler takes the precompiled header where it finds it before the header itself.
    header = str(_HERE / "emulator.h")
    _run(*_KERNEL_FLAGS, "-x", "c++-header", header, "-o", str(_folder() / "emulator.h.gch"))
    return tuple(objects)


@functools.cache
def build(text: str) -> Path:
    """Shared library of a translated kernel and the runtime; made once a process for each text."""
    number = len(list(_folder().glob("*.cpp")))
    source = _folder() / f"kernel{number}.cpp"
    source.write_text(text)
    library = source.with_suffix(".so")
    objects = _runtime()
    include = (f"-I{_folder()}", f"-I{_HERE}")
    _run(*_KERNEL_FLAGS, *include, "-shared", str(source), *objects, "-o", str(library))
    return library
