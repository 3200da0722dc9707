"""Writing a library: TVM's executable and the metadata into one shared object, atomically."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tvm_q4.errors import EnvironmentMismatch, InputError, LibraryError
from tvm_q4.library.cuda_module import SourceCompiler
from tvm_q4.library.format import SECTION, check_format
from tvm_q4.library.linker import error_line, find_compiler
from tvm_q4.library.packing import SYMBOL, cuda_sources, module_blob, replace_source

logger = logging.getLogger(__name__)

# "%progbits" and no flags: the section is not mapped when the library is loaded. The second line
# keeps the linker from asking for an executable stack because of this object.
_ASSEMBLY = """\
.section {section},"",%progbits
.incbin "{file}"
.section .note.GNU-stack,"",%progbits
"""

# What TVM makes of the same bytes is a constant array, which it has LLVM compile.
_BLOB_ASSEMBLY = """\
.section .rodata,"a",%progbits
.balign 64
.globl {symbol}
.type {symbol}, %object
{symbol}:
.incbin "{file}"
.size {symbol}, .-{symbol}
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
        Goes into section ``.tvm_q4`` as JSON. Where its ``target`` is of kind cuda, the CUDA source
        of each family's module is compiled for the archs that it names.
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
        If no C++ compiler is found, or it cannot link; no nvcc for CUDA, or it fails.
    """
    path = check_writable(path)
    compiler = find_compiler()
    check_format(metadata, path)
    pack = packer(metadata["target"])
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
                fpack_imports=pack,
            )
        except OSError as error:
            msg = f"output '{path}' cannot be written: {error.strerror or error}"
            raise LibraryError(msg) from error
        except RuntimeError as error:
            logger.debug("linking failed:\n%s", error)
            msg = (
                f"{compiler} cannot link the library: {error_line(str(error))}; see `tvm-q4 doctor`"
            )
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
    content = work / "metadata.json"
    content.write_text(text, encoding="utf-8")
    return _assembly(_ASSEMBLY, content, section=SECTION)


def packer(target: Mapping[str, Any]) -> Callable[..., str] | None:
    """For CUDA, what writes a module's imports, with machine code in them, to a source file.

    Parameters
    ----------
    target : mapping
        ``target`` of the metadata: ``kind``, and for CUDA ``archs`` and ``ptx``.

    Returns
    -------
    callable or None
        The ``fpack_imports`` of TVM's ``export_library``.
    """
    if target["kind"] != "cuda":
        return None
    compiler = SourceCompiler(target)

    def pack(module: Any, _is_system_lib: bool, _symbol_prefix: str, work: str) -> str:
        compiled = compiler.compile_all(cuda_sources(module))
        blob = replace_source(module_blob(module), compiled)
        content = Path(work) / "imports.bin"
        content.write_bytes(blob.to_bytes())
        return str(_assembly(_BLOB_ASSEMBLY, content, symbol=SYMBOL))

    return pack


def _assembly(template: str, content: Path, **names: str) -> Path:
    source = content.with_suffix(".s")
    quoted = str(content).replace("\\", "\\\\").replace('"', '\\"')
    source.write_text(template.format(file=quoted, **names), encoding="utf-8")
    return source
