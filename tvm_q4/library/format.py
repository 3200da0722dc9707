"""The file format: one ELF shared object whose section ``.tvm_q4`` holds the metadata as JSON.

Everything here reads bytes only. It neither runs the library's code nor imports TVM, so a library
for another machine, or one that does not load here, can still be inspected.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from tvm_q4.errors import LibraryError
from tvm_q4.library.schema import metadata_fault

FORMAT, VERSION = "tvm-q4/library", 1
SECTION = ".tvm_q4"


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of a library, read from the file without running anything.

    Parameters
    ----------
    path : str or Path
        A ``.so`` that ``tvm-q4 compile`` wrote.

    Returns
    -------
    dict
        The JSON object in section ``.tvm_q4``.

    Raises
    ------
    LibraryError
        If the file is missing, is no ELF file, is truncated, holds no metadata or not what
        `tvm_q4.library.schema` says, or was written for another version of the format.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            metadata = check_format(_parse(_section(file, path), path), path)
    except OSError as error:
        msg = f"library '{path}' cannot be read: {error.strerror}"
        raise LibraryError(msg) from None
    wrong = metadata_fault(metadata)
    if wrong:
        msg = f"library '{path}' has damaged metadata: {wrong}; compile the model again"
        raise LibraryError(msg)
    return metadata


def check_format(metadata: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """`metadata` itself, if it is of the format and version that this package reads.

    Raises
    ------
    LibraryError
        If it is not; the message has both versions and says to recompile.
    """
    name, version = metadata.get("format"), metadata.get("version")
    if name != FORMAT:
        msg = f"library '{path}' has format {name!r}, expected {FORMAT!r}; compile the model again"
        raise LibraryError(msg)
    if version != VERSION:
        msg = (
            f"library '{path}' has format version {version!r}, this tvm-q4 reads version {VERSION}"
            "; compile the model again"
        )
        raise LibraryError(msg)
    return metadata


def _section(file: BinaryIO, path: Path) -> bytes:
    try:
        elf = ELFFile(file)
        _check_whole(elf, path)
        section = elf.get_section_by_name(SECTION)
        data = None if section is None else section.data()
    except (ELFError, ConstructError, UnicodeDecodeError, AttributeError) as error:
        # pyelftools raises AttributeError where a header points to something that is no header.
        if file.seek(0) == 0 and file.read(4) != b"\x7fELF":
            msg = f"library '{path}' is not an ELF shared object; give a .so that tvm-q4 compiled"
        else:
            reason = error or type(error).__name__
            msg = f"library '{path}' is damaged ({reason}); compile the model again"
        raise LibraryError(msg) from None
    if data is None:
        msg = f"library '{path}' has no section {SECTION}; give a .so that tvm-q4 compiled"
        raise LibraryError(msg)
    return data


def _check_whole(elf: ELFFile, path: Path) -> None:
    """Refuse a file that ends before its last byte: loading it would end in SIGBUS."""
    size = elf.stream.seek(0, 2)
    ends = [elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"]]
    ends += [s["p_offset"] + s["p_filesz"] for s in elf.iter_segments()]
    if max(ends) <= size:
        ends += [
            s["sh_offset"] + s["sh_size"]
            for s in elf.iter_sections()
            if s["sh_type"] not in ("SHT_NOBITS", "SHT_NULL")
        ]
    if max(ends) > size:
        msg = (
            f"library '{path}' is truncated: {size} of {max(ends)} bytes; copy or compile it again"
        )
        raise LibraryError(msg)


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = f"library '{path}' has damaged metadata ({error}); compile the model again"
        raise LibraryError(msg) from None
    if not isinstance(metadata, dict):
        found = type(metadata).__name__
        msg = f"library '{path}' has damaged metadata (a JSON {found}); compile the model again"
        raise LibraryError(msg)
    return metadata
