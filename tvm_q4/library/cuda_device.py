"""The GPU that a library runs on: finding it, and choosing what code of the library it runs."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_q4.errors import LibraryError
from tvm_q4.library.nvcc import packaged_folders

_RUNTIME = "libcudart.so.13"
_DRIVER = "libcuda.so.1"


@dataclass(frozen=True)
class CudaDevice:
    """A GPU.

    Attributes
    ----------
    handle : tvm.runtime.Device
    arch : int
        Compute capability, such as 75.
    name : str
    """

    handle: Any
    arch: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.arch})"


@dataclass(frozen=True)
class Choice:
    """What a device runs: a family's kernels, as machine code of `arch` or from its PTX."""

    family: int
    arch: int
    kind: str


def open_device() -> CudaDevice:
    """The first GPU that CUDA shows (``CUDA_VISIBLE_DEVICES`` orders them).

    Raises
    ------
    LibraryError
        If there is no driver, no CUDA runtime or no device here.
    """
    import tvm

    problem = load_runtime()
    if problem:
        raise LibraryError(problem)
    handle = tvm.cuda(0)
    if not handle.exist:
        msg = "the CUDA driver is here, but shows no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        raise LibraryError(msg)
    major, minor = str(handle.compute_version).split(".")
    return CudaDevice(handle, 10 * int(major) + int(minor), str(handle.device_name))


def load_runtime() -> str | None:
    """Load TVM's runtime for CUDA, where ``import tvm`` could not.

    Returns
    -------
    str or None
        What is missing on this machine, in one line; None where the runtime is loaded.
    """
    if _has_runtime():
        return None
    if _load(_DRIVER) is not None:
        return f"this machine has no NVIDIA driver ({_DRIVER} does not load); run it where a GPU is"
    # The PyPI package of the CUDA runtime lies where the dynamic linker does not look.
    packaged = [folder / "lib" / _RUNTIME for folder in packaged_folders()]
    if all(_load(name) is not None for name in (_RUNTIME, *map(str, packaged))):
        return (
            f'the CUDA runtime {_RUNTIME} is missing; run: pip install "nvidia-cuda-runtime==13.*"'
        )
    problem = _load(str(_tvm_library()))
    if problem is None and _has_runtime():
        return None
    return f"TVM's runtime for CUDA does not load: {problem or 'it registers no device'}"


def choose(target: Mapping[str, Any], arch: int) -> Choice:
    """The code of a library that a device of `arch` runs.

    Kernels of the highest family not above the device, as machine code where the library has it for
    an arch of the same major version and no higher minor version (CUDA's binary compatibility),
    else from PTX, which runs on any later device.

    Parameters
    ----------
    target : mapping
        ``target`` of the library's metadata: ``archs`` and ``ptx``.
    arch : int
        Compute capability of the device.

    Raises
    ------
    LibraryError
        If no code in the library runs on such a device.
    """
    from tvm_q4.cuda_target import family_of_arch

    archs, ptx = sorted(target["archs"]), target["ptx"]
    by_family: dict[int, list[int]] = {}
    for inside in archs:
        by_family.setdefault(family_of_arch(inside), []).append(inside)
    for family in sorted(by_family, reverse=True):
        binary = [a for a in by_family[family] if a // 10 == arch // 10 and a <= arch]
        if binary:
            return Choice(family, binary[-1], "cubin")
        if ptx in by_family[family] and ptx <= arch:
            return Choice(family, ptx, "ptx")
    names = ", ".join(f"sm_{a}" for a in archs)
    later = f" and PTX for what comes after sm_{ptx}" if ptx else ""
    msg = (
        f"the library holds code for {names}{later}, the device is sm_{arch}; compile the model "
        f"with --target cuda:{','.join(f'sm_{a}' for a in sorted({*archs, arch}))}"
    )
    raise LibraryError(msg)


def can_run(target: Mapping[str, Any], arch: int) -> bool:
    """Whether a library for `target` has code for a device of `arch`; see `choose`."""
    try:
        choose(target, arch)
    except LibraryError:
        return False
    return True


def emulated_int4(metadata: Mapping[str, Any], arch: int) -> str | None:
    """A warning where int4 layers would be emulated on `arch`; else None.

    That is so on sm_90 and later, which have no int4 tensor cores, where a library holds kernels
    for older archs only: the driver then makes several int8 instructions of each (measured by
    others: 2 % of int8's rate).
    """
    from tvm_q4.cuda_target import family_of_arch

    families = {family_of_arch(a) for a in metadata["target"]["archs"]}
    if arch < 90 or max(families) >= 90 or not has_int4(metadata["layers"]):
        return None
    return (
        "this library's int4 layers use int4 tensor cores, which sm_90 and later emulate slowly; "
        "compile the model for sm_90 too, where they run as int8"
    )


def has_int4(layers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a layer multiplies 4-bit weights by 4-bit activations."""
    return any(layer["weight_bits"] == layer["activation_bits"] == 4 for layer in layers)


def _has_runtime() -> bool:
    import tvm

    return tvm.get_global_func("device_api.cuda", allow_missing=True) is not None


def _tvm_library() -> Path:
    from tvm_q4._compat import find_libtvm_runtime

    return Path(find_libtvm_runtime()).with_name("libtvm_runtime_cuda.so")


def _load(name: str) -> str | None:
    """Load a shared library for all that comes after; what went wrong, or None."""
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return None
