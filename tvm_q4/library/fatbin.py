"""Fat binaries: machine code of one CUDA source for several archs, made by nvcc, and taken apart.

A fat binary is a header and one entry for each piece of code. NVIDIA does not document it; the
fields below are those that the loader of CUDA's driver and cuobjdump agree on.
"""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_q4.errors import EnvironmentMismatch, LibraryError
from tvm_q4.library.linker import error_line, find_compiler
from tvm_q4.library.nvcc import Tool, find_nvcc

logger = logging.getLogger(__name__)

MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, ?, bytes of this header, bytes of the code,
# compressed bytes (0: not compressed), ?, minor and major version, arch
_KINDS = {1: "ptx", 2: "cubin"}
# Neither fast-math nor fused multiply-add: float steps (quantize, dequantize) round as those of the
# reference. Code stays uncompressed, so that it can be read without NVIDIA's tools.
_FLAGS = (
    *("-fatbin", "-std=c++17", "--fmad=false", "-no-compress", "-w"),
    *("-allow-unsupported-compiler", "-Wno-deprecated-gpu-targets"),
)


@dataclass(frozen=True)
class DeviceCode:
    """One entry: ``cubin`` (machine code) or ``ptx``, for which arch, and its bytes."""

    kind: str
    arch: int
    data: bytes

    @property
    def name(self) -> str:
        """File name of the entry, without what tells families apart."""
        return f"sm_{self.arch}.{self.kind}"


def compile_fatbin(
    source: str, archs: Sequence[int], ptx_arch: int | None = None, *, nvcc: Tool | None = None
) -> bytes:
    """Compile CUDA source.

    Parameters
    ----------
    source : str
    archs : sequence of int
        Archs to make machine code for.
    ptx_arch : int, optional
        Arch to make PTX for, from which drivers compile for devices that come later.
    nvcc : Tool, optional
        The compiler; looked for where None.

    Returns
    -------
    bytes
        A fat binary with one entry for each arch, and one for the PTX.

    Raises
    ------
    EnvironmentMismatch
        If there is no nvcc or no C++ compiler for it, or it fails.
    TargetError
        If it does not know one of `archs`.
    """
    nvcc = nvcc or find_nvcc(archs)
    with tempfile.TemporaryDirectory(prefix="tvm_q4_") as folder:
        file, output = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        file.write_text(source, encoding="utf-8")
        threads = max(1, min(os.cpu_count() or 1, len(archs)))
        command = [str(nvcc.path), *_FLAGS, "-ccbin", find_compiler(), "--threads", str(threads)]
        command += _gencode(archs, ptx_arch)
        _run([*command, str(file), "-o", str(output)], nvcc)
        return output.read_bytes()


def _gencode(archs: Sequence[int], ptx_arch: int | None) -> list[str]:
    options = []
    for arch in archs:
        code = f"[sm_{arch},compute_{arch}]" if arch == ptx_arch else f"sm_{arch}"
        options += ["-gencode", f"arch=compute_{arch},code={code}"]
    if ptx_arch is not None and ptx_arch not in archs:
        options += ["-gencode", f"arch=compute_{ptx_arch},code=compute_{ptx_arch}"]
    return options


def _run(command: list[str], nvcc: Tool) -> None:
    logger.debug("running %s", " ".join(command))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = done.stderr + done.stdout
        logger.debug("nvcc failed:\n%s", output)
        msg = f"nvcc ({nvcc.path}) cannot compile the kernels: {error_line(output)}"
        raise EnvironmentMismatch(f"{msg}; see `tvm-q4 doctor`, and -vv for all that nvcc says")


def device_codes(fatbin: bytes) -> list[DeviceCode]:
    """The entries of a fat binary.

    Raises
    ------
    LibraryError
        If it is none, is damaged, or holds compressed code.
    """
    try:
        return _entries(fatbin)
    except (struct.error, KeyError) as error:
        raise LibraryError(f"device code is damaged ({error}); compile the model again") from None


def _entries(fatbin: bytes) -> list[DeviceCode]:
    magic, _, position, size = _HEADER.unpack_from(fatbin)
    if magic != struct.unpack("<I", MAGIC)[0] or position + size > len(fatbin):
        raise LibraryError("device code is no whole fat binary; compile the model again")
    end = position + size
    found = []
    while position < end:
        kind, _, header, length, compressed, _, _, _, arch = _ENTRY.unpack_from(fatbin, position)
        if compressed:
            raise LibraryError("device code is compressed; compile the model with this tvm-q4")
        start = position + header
        data = fatbin[start : start + length]
        found.append(DeviceCode(_KINDS[kind], arch, data.rstrip(b"\0") if kind == 1 else data))
        position = start + length
    return found
