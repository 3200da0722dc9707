"""The device code in a library, read from the file: neither a GPU nor NVIDIA's tools are needed."""

from __future__ import annotations

from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from tvm_q4.errors import InputError, LibraryError
from tvm_q4.library.fatbin import device_codes
from tvm_q4.library.packing import SYMBOL, Blob


def read_fatbins(path: str | Path) -> list[bytes]:
    """Fat binaries of a library, one for each family; none where it is for the CPU.

    Parameters
    ----------
    path : str or Path
        A library whose metadata could be read.

    Raises
    ------
    LibraryError
        If its device code cannot be read.
    """
    data = _symbol(Path(path), SYMBOL)
    return [] if data is None else Blob.parse(data).fatbins()


def write_device_code(path: str | Path, folder: str | Path) -> list[Path]:
    """Write a library's device code into an existing folder.

    Each family's fat binary becomes ``sm_80-sm_89.fatbin`` (the archs in it), each piece in it
    ``sm_80.cubin`` (machine code) or ``sm_90.ptx``.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    LibraryError
        If the device code cannot be read.
    InputError
        If a file cannot be written.
    """
    files: dict[str, bytes] = {}
    for fatbin in read_fatbins(path):
        codes = device_codes(fatbin)
        archs = dict.fromkeys(f"sm_{code.arch}" for code in codes)
        files |= {"-".join(archs) + ".fatbin": fatbin} | {code.name: code.data for code in codes}
    for name, data in files.items():
        try:
            (Path(folder) / name).write_bytes(data)
        except OSError as error:
            msg = f"cannot write '{Path(folder) / name}': {error.strerror}"
            raise InputError(f"{msg}; give --extract a writable folder") from None
    return [Path(folder) / name for name in files]


def _symbol(path: Path, name: str) -> bytes | None:
    """What a symbol of a shared object names, or None where it has no such symbol."""
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            table = elf.get_section_by_name(".dynsym")
            found = table.get_symbol_by_name(name) if table is not None else None
            if not found:
                return None
            section = elf.get_section(found[0]["st_shndx"])
            start = found[0]["st_value"] - section["sh_addr"]
            return section.data()[start : start + found[0]["st_size"]]
    except (OSError, ELFError) as error:
        msg = f"library '{path}' has no readable device code ({error}); compile the model again"
        raise LibraryError(msg) from None
