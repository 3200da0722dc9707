"""The C++ compiler that links libraries, and what its messages say."""

from __future__ import annotations

import shutil

from tvm_q4.errors import EnvironmentMismatch


def find_compiler() -> str:
    """The compiler that links libraries: ``$CXX``, ``$CC``, else g++, gcc, clang++, ...

    Raises
    ------
    EnvironmentMismatch
        If there is none.
    """
    from tvm_q4._compat import find_cpp_compiler

    compiler = find_cpp_compiler()
    if compiler is None or shutil.which(compiler) is None:
        found = f"{compiler!r} is not there" if compiler else "none was found"
        msg = f"linking a library needs a C++ compiler, {found}; install g++ or clang, or set CXX"
        raise EnvironmentMismatch(msg)
    return compiler


def error_line(text: str) -> str:
    """The line of a compiler's or linker's output that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [
        line for line in lines if "error" in line.lower() and not line.startswith("Compilation")
    ]
    return (marked or lines or ["no message"])[0]
