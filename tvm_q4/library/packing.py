"""TVM's blob of imported modules, with machine code in place of CUDA source.

A library's modules that are no host code (the virtual machine's program with the weights, one CUDA
module a family) stand serialized in its symbol ``__tvm_ffi__library_bin`` (TVM 0.27,
``src/target/codegen.cc``); all numbers are little endian::

    u64 bytes that follow, u64[] row pointers and u64[] children of the import tree,
    then for each module its kind, and unless that is "_lib" its payload

where ``u64[]`` and strings are preceded by their length as u64. The payload of a CUDA module is its
format, its functions and its code. TVM writes CUDA source with the format ``cuda``, for the loader
to compile; code of any other format goes to the driver as it is
(``src/backend/cuda/runtime/cuda_module.cc``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tvm_q4.errors import LibraryError
from tvm_q4.library.fatbin import MAGIC

SYMBOL = "__tvm_ffi__library_bin"
FATBIN = "fatbin"
_U64 = struct.Struct("<Q")
_HOST_CODE = b"_lib"
_CALLBACK = "tvm_callback_cuda_compile"


@dataclass(frozen=True)
class Entry:
    """A module in the blob; `payload` is None for host code, which is linked instead."""

    kind: str
    payload: bytes | None


@dataclass(frozen=True)
class Blob:
    """The modules, and the import tree as TVM wrote it."""

    tree: bytes
    entries: tuple[Entry, ...]

    @classmethod
    def parse(cls, data: bytes) -> Blob:
        """Read a blob.

        Raises
        ------
        LibraryError
            If it does not have the form above.
        """
        try:
            return cls._parse(data)
        except struct.error:
            raise LibraryError("the library's modules are damaged; compile it again") from None

    @classmethod
    def _parse(cls, data: bytes) -> Blob:
        end = 8 + _U64.unpack_from(data)[0]
        if end > len(data):
            raise LibraryError("the library's modules are cut off; compile it again")
        position = 8
        for _ in range(2):
            position += 8 + 8 * _U64.unpack_from(data, position)[0]
        tree = data[8:position]
        entries = []
        while position < end:
            kind, position = _string(data, position)
            payload = None
            if kind != _HOST_CODE:
                payload, position = _string(data, position)
            entries.append(Entry(kind.decode(), payload))
        return cls(tree, tuple(entries))

    def to_bytes(self) -> bytes:
        """The blob as TVM reads it."""
        parts = [self.tree]
        for entry in self.entries:
            parts.append(_sized(entry.kind.encode()))
            if entry.payload is not None:
                parts.append(_sized(entry.payload))
        return _sized(b"".join(parts))

    def fatbins(self) -> list[bytes]:
        """Machine code of the CUDA modules, in the order of the blob.

        Raises
        ------
        LibraryError
            If a CUDA module holds something else.
        """
        return [_fatbin_of(e.payload) for e in self.entries if e.kind == "cuda" and e.payload]


def replace_source(blob: Blob, compiled: Mapping[str, bytes]) -> Blob:
    """The blob with machine code for the source of its CUDA modules.

    Parameters
    ----------
    blob : Blob
    compiled : mapping
        From the CUDA source that a module holds to its fat binary.
    """
    tails = {_sized(source.encode()): fatbin for source, fatbin in compiled.items()}

    def convert(entry: Entry) -> Entry:
        if entry.kind != "cuda":
            return entry
        payload = entry.payload or b""
        tail = next(tail for tail in tails if payload.endswith(tail))
        _, start = _string(payload, 0)
        functions = payload[start : len(payload) - len(tail)]
        code = _sized(FATBIN.encode()) + functions + _sized(tails[tail])
        return replace(entry, payload=code)

    return Blob(blob.tree, tuple(convert(entry) for entry in blob.entries))


def cuda_sources(module: Any) -> list[str]:
    """CUDA source of every device module under a TVM module."""
    found = [str(module.inspect_source("cuda"))] if module.kind == "cuda" else []
    return found + [source for child in module.imports for source in cuda_sources(child)]


def module_blob(module: Any) -> Blob:
    """The blob of what a TVM module imports."""
    import tvm

    pack = tvm.get_global_func("runtime.ModulePackImportsToTensor")
    return Blob.parse(pack(module).numpy().tobytes())


@contextmanager
def source_only() -> Iterator[None]:
    """Keep TVM from compiling CUDA modules while it builds them.

    Where a GPU's driver is installed, TVM compiles each module for that GPU at once; its code is
    replaced on export anyway.
    """
    import tvm

    compiler = tvm.get_global_func(_CALLBACK)
    tvm.register_global_func(_CALLBACK, lambda source: bytes(source, "utf-8"), override=True)
    try:
        yield
    finally:
        tvm.register_global_func(_CALLBACK, compiler, override=True)


def _fatbin_of(payload: bytes) -> bytes:
    form, _ = _string(payload, 0)
    start = payload.find(MAGIC)
    while start >= 8:
        if _U64.unpack_from(payload, start - 8)[0] == len(payload) - start:
            return payload[start:]
        start = payload.find(MAGIC, start + 1)
    msg = f"the library holds device code of format {form.decode()!r}; compile it with this tvm-q4"
    raise LibraryError(msg)


def _string(data: bytes, position: int) -> tuple[bytes, int]:
    (size,) = _U64.unpack_from(data, position)
    end = position + 8 + size
    if end > len(data):
        raise LibraryError("the library's modules are cut off; compile it again")
    return data[position + 8 : end], end


def _sized(data: bytes) -> bytes:
    return _U64.pack(len(data)) + data
