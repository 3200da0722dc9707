"""Writing a library: TVM's executable and the metadata into one shared object, atomically."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tvm_q4.errors import EnvironmentMismatch, InputError, LibraryError
from tvm_q4.library.format import SECTION, check_format

logger = logging.getLogger(__name__)

# "%progbits" and no flags: the section is not mapped when the library is loaded. The second line
# keeps the linker from asking for an executable stack because of this object.
_ASSEMBLY = """\
.section {section},"",%progbits
.incbin "{file}"
.section .note.GNU-stack,"",%progbits
"""


def check_writable(path: str | Path) -> Path:
    """Make sure that a library can be written to `path`, before any work is done.

    Returns
    -------
    Path
        `path` as a Path.

    Raises
    ------
    InputError
        If its name does not end in ``.so``, its folder is missing or cannot be written to, or
        something that is no regular file has the name.
    """
    path = Path(path)
    if path.suffix != ".so":
        raise InputError(f"output '{path}' must end in .so; a library is a shared object")
    if path.exists() and not path.is_file():
        raise InputError(f"output '{path}' exists and is not a regular file; choose another name")
    if not path.parent.is_dir():
        raise InputError(
            f"output '{path}' cannot be written: '{path.parent}' is not a folder; create it first"
        )
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        msg = f"output '{path}' cannot be written: {error.strerror}; choose another folder"
        raise InputError(msg) from None
    return path


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


def export_library(
    executable: Any,
    metadata: dict[str, Any],
    path: str | Path,
    *,
    work_dir: str | Path | None = None,
) -> Path:
    """Write a compiled model as one shared object.

    Parameters
    ----------
    executable : tvm.relax.VMExecutable
        What ``relax.build`` made.
    metadata : dict
        Goes into section ``.tvm_q4`` as JSON.
    path : str or Path
        Output, ``*.so``. It appears under this name only when it is complete; an older file of that
        name is replaced then.
    work_dir : str or Path, optional
        Existing folder that keeps the object files; a temporary one where None.

    Returns
    -------
    Path
        `path` as a Path.

    Raises
    ------
    InputError
        If `path` cannot be written to.
    EnvironmentMismatch
        If no C++ compiler is found, or it cannot link.
    """
    path = check_writable(path)
    compiler = find_compiler()
    check_format(metadata, path)
    with _folder(work_dir) as work, _replacing(path) as output:
        source = _metadata_source(metadata, work)
        try:
            # -s: the symbol table and DWARF that LLVM writes are of no use to the VM.
            executable.export_library(
                str(output),
                addons=[str(source)],
                workspace_dir=str(work),
                cc=compiler,
                options=["-Wl,-s"],
            )
        except OSError as error:
            msg = f"output '{path}' cannot be written: {error.strerror or error}"
            raise LibraryError(msg) from error
        except RuntimeError as error:
            logger.debug("linking failed:\n%s", error)
            msg = f"{compiler} cannot link the library: {_cause(str(error))}; see `tvm-q4 doctor`"
            raise EnvironmentMismatch(msg) from error
    return path


@contextmanager
def _folder(work_dir: str | Path | None) -> Iterator[Path]:
    if work_dir is not None:
        yield Path(work_dir)
        return
    with tempfile.TemporaryDirectory(prefix="tvm_q4_") as folder:
        yield Path(folder)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` for its new content, which takes the place of `path` on success only."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        output = Path(folder) / path.name
        yield output
        # A new file takes the name; processes that have the old one mapped keep it.
        output.replace(path)


def _metadata_source(metadata: dict[str, Any], work: Path) -> Path:
    """Assembly that holds the metadata; the compiler driver that links assembles it."""
    text = json.dumps(metadata, separators=(",", ":"), allow_nan=False)
    content, source = work / "metadata.json", work / "metadata.s"
    content.write_text(text, encoding="utf-8")
    quoted = str(content).replace("\\", "\\\\").replace('"', '\\"')
    source.write_text(_ASSEMBLY.format(section=SECTION, file=quoted), encoding="utf-8")
    return source


def _cause(text: str) -> str:
    """The line of a linker's output that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [
        line for line in lines if "error" in line.lower() and not line.startswith("Compilation")
    ]
    return (marked or lines or ["no message"])[0]
