"""Launch a kernel on the emulator."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tests.cuda_emulator.build import build
from tests.cuda_emulator.errors import EmulationError
from tests.cuda_emulator.translate import Parameter, translate

_SHARED_LIMIT = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227}
"""Shared memory that a block can have, in KiB, by compute capability (CUDA programming guide)."""


@dataclass(frozen=True)
class Uninitialized:
    """An array that the kernel must write before it reads it: reading it first is an error."""

    array: np.ndarray


Argument = np.ndarray | Uninitialized | int


class _Argument(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("written", ctypes.c_int),
    )


def run(
    source: str,
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Argument] | Mapping[str, Argument],
    shared_bytes: int = 0,
    *,
    arch: int | None = None,
    blocks: Sequence[int] | None = None,
) -> dict[str, int]:
    """Run one kernel; the arrays among `args` are changed in place.

    Parameters
    ----------
    source : str
        CUDA source of the module, as TVM's ``inspect_source()`` gives it.
    kernel : str
        Name of the ``__global__`` function.
    grid, block : sequence of int
        One to three extents, x first.
    args : sequence or mapping
        Arrays (C-contiguous) and scalars in the kernel's order, or by its parameters' names,
        where ``name`` stands for TVM's ``name_ptr`` too.
    shared_bytes : int
        Bytes of dynamic shared memory.
    arch : int, optional
        Compute capability (80 for sm_80): instructions and shared memory that it lacks are errors.
    blocks : sequence of int, optional
        Linear indices of the blocks to run; by default all.

    Returns
    -------
    dict of str to int
        How often each warp instruction, asynchronous copy and barrier was executed.

    Raises
    ------
    EmulationError
        The kernel does what hardware would make wrong; the message has block, thread and line.
    """
    translation = translate(source, kernel, arch)
    grid3, block3 = _extents(grid), _extents(block)
    threads = block3[0] * block3[1] * block3[2]
    if threads > min(translation.max_threads, 1024):
        raise EmulationError(f"{threads} threads in a block of at most {translation.max_threads}")
    if arch in _SHARED_LIMIT and shared_bytes > _SHARED_LIMIT[arch] * 1024:
        raise EmulationError(
            f"{shared_bytes} bytes of shared memory; sm_{arch} has {_SHARED_LIMIT[arch]} KiB"
        )
    values = _in_order(args, translation.parameters)
    packed = (_Argument * len(values))(*map(_pack, translation.parameters, values))
    total = grid3[0] * grid3[1] * grid3[2]
    chosen = list(range(total)) if blocks is None else list(blocks)
    library = ctypes.CDLL(str(build(translation.text)))
    message = ctypes.create_string_buffer(1024)
    status = library.emu_launch(
        (ctypes.c_uint * 3)(*grid3),
        (ctypes.c_uint * 3)(*block3),
        ctypes.c_int64(shared_bytes),
        packed,
        len(values),
        (ctypes.c_int * len(chosen))(*chosen),
        len(chosen),
        message,
        len(message),
    )
    if status:
        raise EmulationError(_explain(message.value.decode(), source, kernel))
    return _counts(library)


def _extents(extents: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*extents, 1, 1)[:3]
    return int(x), int(y), int(z)


def _in_order(
    args: Sequence[Argument] | Mapping[str, Argument], parameters: tuple[Parameter, ...]
) -> list[Argument]:
    if isinstance(args, Mapping):
        by_name = dict(args)
        values = [
            by_name.pop(p.name)
            if p.name in by_name
            else by_name.pop(p.name.removesuffix("_ptr"), None)
            for p in parameters
        ]
        missing = [p.name for p, v in zip(parameters, values, strict=True) if v is None]
        if missing or by_name:
            raise EmulationError(f"arguments missing: {missing}; unknown: {sorted(by_name)}")
        return values
    if len(args) != len(parameters):
        names = [p.name for p in parameters]
        raise EmulationError(f"{len(args)} arguments for the parameters {names}")
    return list(args)


def _pack(parameter: Parameter, value: Argument) -> _Argument:
    name = parameter.name.encode()
    if not parameter.pointer:
        if not isinstance(value, (int, np.integer)):
            raise EmulationError(
                f"parameter {parameter.name} is an integer, not {type(value).__name__}"
            )
        return _Argument(name, None, int(value), 1)
    array = value.array if isinstance(value, Uninitialized) else value
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise EmulationError(f"parameter {parameter.name} takes a C-contiguous array")
    return _Argument(name, array.ctypes.data, array.nbytes, int(array is value))


def _explain(message: str, source: str, kernel: str) -> str:
    number, text = message.split("|", 1)
    lines = source.split("\n")
    line = lines[int(number) - 1].strip() if 0 < int(number) <= len(lines) else "(start)"
    return f"{kernel}: {text}\n  line {number}: {line}"


def _counts(library: ctypes.CDLL) -> dict[str, int]:
    text = ctypes.create_string_buffer(1 << 14)
    library.emu_counts(text, len(text))
    pairs = (line.rsplit("=", 1) for line in text.value.decode().splitlines())
    return {name: int(value) for name, value in pairs}
