"""Kernels of a TensorIR function: what TVM generates for it, and running that on the emulator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.target import Target
from tvm.tirx import PrimFunc

from tests.cuda_emulator.errors import EmulationError
from tests.cuda_emulator.launch import Argument, Uninitialized, run

_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Kernel:
    """A ``__global__`` function: source, launch extents, and bytes of dynamic shared memory."""

    source: str
    name: str
    parameters: tuple[str, ...]
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int


def lower(func: PrimFunc, arch: str, pipeline: str = "default") -> list[Kernel]:
    """Kernels of one function, in the order in which it launches them; see `lower_all`."""
    return lower_all([func], arch, pipeline)


def lower_all(funcs: Sequence[PrimFunc], arch: str, pipeline: str = "default") -> list[Kernel]:
    """Generate CUDA source for functions, without a device or a CUDA compiler.

    Parameters
    ----------
    funcs : sequence of PrimFunc
        Scheduled functions with bound threads and static extents, of different names.
    arch : str
        Such as ``"sm_80"``.
    pipeline : str
        Registered TIR pipeline; "default" is TVM's own.

    Returns
    -------
    list of Kernel
        All of one source; those of a function in the order in which it launches them.
    """
    target = Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})
    named = {str(func.attrs["global_symbol"]): func for func in funcs}
    module = tirx.transform.BindTarget(target)(tvm.IRModule(named))
    if pipeline == "default":
        passes, _, device_passes = tirx.get_default_tir_pipeline(target)
    else:
        passes, _, device_passes = tirx.get_tir_pipeline(pipeline)
    build = sys.modules["tvm.tirx.build"]
    _, devices = build.split_host_device_mods(passes(module))
    kernels = []
    for device_target, device_module in devices.items():
        device_module = device_passes()(device_module)
        source = build.codegen_build(device_module, device_target).inspect_source()
        kernels += [_kernel(source, g.name_hint, f) for g, f in device_module.functions.items()]
    return sorted(kernels, key=lambda k: (len(k.name), k.name))


def _kernel(source: str, name: str, func: PrimFunc) -> Kernel:
    extents: dict[str, int] = {}
    dynamic = 0

    def visit(node: Any) -> None:
        nonlocal dynamic
        if isinstance(node, tirx.AttrStmt) and node.attr_key == "thread_extent":
            extents[node.node.thread_tag] = int(node.value)
        elif isinstance(node, tirx.AllocBuffer) and node.buffer.scope() == "shared.dyn":
            elements = int(np.prod([int(e) for e in node.buffer.shape]))
            dynamic += elements * tvm.DataType(str(node.buffer.dtype)).itemsize

    tvm_ffi.structural_walk(func.body, visit)
    grid = tuple(extents.get(f"blockIdx.{a}", 1) for a in _AXES)
    block = tuple(extents.get(f"threadIdx.{a}", 1) for a in _AXES)
    return Kernel(source, name, tuple(p.name for p in func.params), grid, block, dynamic)


def _initialized(argument: Argument) -> Argument:
    return argument.array if isinstance(argument, Uninitialized) else argument


def run_prim_func(
    func: PrimFunc,
    args: Sequence[Argument],
    arch: str,
    pipeline: str = "default",
    change: Callable[[str], str] | None = None,
) -> dict[str, int]:
    """Run all kernels of a function; the arrays are changed in place.

    Parameters
    ----------
    func : PrimFunc
        As for `lower`.
    args : sequence
        One array for each of the function's parameters.
    arch : str
        Such as ``"sm_80"``; instructions that it lacks are errors.
    pipeline : str
        As for `lower`.
    change : callable, optional
        Applied to the CUDA source first: to plant faults.

    Returns
    -------
    dict of str to int
        Executed instructions, summed over the kernels.
    """
    by_name = {f"{p.name}_ptr": a for p, a in zip(func.params, args, strict=True)}
    total: dict[str, int] = {}
    for kernel in lower(func, arch, pipeline):
        missing = [p for p in kernel.parameters if p not in by_name]
        if missing:
            raise EmulationError(
                f"{kernel.name}: parameters {missing} are no arguments of the function"
            )
        values = [by_name[p] for p in kernel.parameters]
        # A later kernel may read what an earlier one was there to write.
        by_name |= {p: _initialized(by_name[p]) for p in kernel.parameters}
        source = change(kernel.source) if change else kernel.source
        number = int(arch.removeprefix("sm_").rstrip("abf"))
        counts = run(
            source, kernel.name, kernel.grid, kernel.block, values, kernel.shared_bytes, arch=number
        )
        for name, value in counts.items():
            total[name] = total.get(name, 0) + value
    return total
