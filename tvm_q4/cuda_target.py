"""CUDA targets: the device code that a library holds, by architecture and family.

An *arch* is a compute capability as nvcc writes it (75 for ``sm_75``). Archs whose tensor cores
take the same instructions form a *family* and share kernels; a library holds one set of kernels for
each family, compiled for each of its archs.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.target import Target

from tvm_q4.errors import TargetError

DEFAULT_ARCHS = (75, 80, 89, 90)
"""What ``cuda`` alone stands for: T4, A100, Ada (L4, RTX 40) and Hopper (H100, H200)."""

ARCH_FAMILY = {
    75: 75,
    **dict.fromkeys((80, 86, 87, 88, 89), 80),
    **dict.fromkeys((90, 100, 103, 110, 120, 121), 90),
}
"""Every arch that CUDA 13 compiles for, and its family."""

# NVIDIA's names of the devices that schedules/cuda has a table for.
_DEVICES = {
    "nvidia/nvidia-t4": ("t4", 75),
    "nvidia/nvidia-a100": ("a100", 80),
    "nvidia/nvidia-l4": ("l4", 89),
    "nvidia/geforce-rtx-4090": ("rtx4090", 89),
    "nvidia/nvidia-h100": ("h100", 90),
    "nvidia/nvidia-h200": ("h200", 90),
}
# The device that tiles are chosen for where none is named; later archs have no table of their own.
_DEFAULT_DEVICE = {75: "t4", 80: "a100", 86: "a10", 87: "a10", 88: "l4", 89: "l4", 90: "h200"}

# Shared memory that one block may ask for, in KiB: CUDA C++ Programming Guide, table "Technical
# specifications per compute capability". TVM opts in to it where a kernel needs more than 48 KiB.
_SHARED_KIB = {75: 64, 80: 163, 86: 99, 87: 163, 88: 99, 89: 99, 90: 227}
_SHARED_KIB |= {100: 227, 103: 227, 110: 227, 120: 99, 121: 99}


@dataclass(frozen=True)
class CudaTarget:
    """A library's device code.

    Attributes
    ----------
    archs : tuple of int
        Sorted, such as (75, 80, 90).
    device : str, optional
        The device that parameters are predicted for, as the device table names it ("t4", "l4",
        ...), where the user named one; it says nothing about families that it does not belong to.

    Raises
    ------
    TargetError
        If there are no archs, or one does not exist.
    """

    archs: tuple[int, ...]
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.archs:
            raise TargetError(f"a CUDA target needs an architecture; choose of {choices()}")
        for arch in self.archs:
            family_of_arch(arch)
        object.__setattr__(self, "archs", tuple(sorted(set(self.archs))))

    @property
    def ptx(self) -> int:
        """The arch whose PTX goes into the library: the newest, for devices that come later."""
        return self.archs[-1]

    def families(self) -> dict[int, tuple[int, ...]]:
        """Archs by family, both ascending."""
        found: dict[int, tuple[int, ...]] = {}
        for arch in self.archs:
            family = ARCH_FAMILY[arch]
            found[family] = (*found.get(family, ()), arch)
        return found

    def family_target(self, family: int) -> Target:
        """TVM's target for the kernels of one family.

        Its arch is the lowest one asked for, its shared memory what every device has that can run
        their code, and its keys name the device to predict for (``device-t4``).
        """
        archs = self.families()[family]
        config = {
            "kind": "cuda",
            "arch": f"sm_{archs[0]}",
            "keys": ["cuda", "gpu", f"device-{self._device(archs)}"],
            "max_threads_per_block": 1024,
            "thread_warp_size": 32,
            "registers_per_block": 65536,
            "max_shared_memory_per_block": _shared_everywhere(archs),
        }
        return Target(config, host=host_target())

    def _device(self, archs: Sequence[int]) -> str:
        named = {key: arch for key, arch in _DEVICES.values()}
        if self.device is not None and ARCH_FAMILY[named[self.device]] == ARCH_FAMILY[archs[0]]:
            return self.device
        return default_device(archs[0])

    def to_json(self) -> dict[str, Any]:
        """The ``target`` of a library's metadata."""
        return {"kind": "cuda", "archs": list(self.archs), "ptx": self.ptx, "device": self.device}

    def __str__(self) -> str:
        return "cuda:" + ",".join(f"sm_{arch}" for arch in self.archs)


def parse_cuda(text: str) -> CudaTarget | None:
    """The target that ``cuda``, ``cuda:sm_75,sm_80`` or a device's name stands for.

    Returns
    -------
    CudaTarget or None
        None where `text` is none of these.

    Raises
    ------
    TargetError
        If an architecture in `text` does not exist or has no kernels.
    """
    if text == "cuda":
        return CudaTarget(DEFAULT_ARCHS)
    if text in _DEVICES:
        device, arch = _DEVICES[text]
        return CudaTarget((arch,), device)
    if text.startswith("cuda:"):
        return CudaTarget(_archs(text[len("cuda:") :].split(","), text))
    return None


def from_tvm(target: Target, text: str) -> CudaTarget:
    """The target of TVM's `target` of kind cuda; `text` is what the user wrote.

    Raises
    ------
    TargetError
        If its arch has no kernels.
    """
    (arch,) = _archs([str(target.attrs["arch"])], text)
    device = next((d for d, _ in _DEVICES.values() if f"device-{d}" in target.keys), None)
    return CudaTarget((arch,), device)


def family_of_arch(arch: int) -> int:
    """The family whose kernels run on `arch`: the same tensor core instructions.

    Raises
    ------
    TargetError
        If there is no such arch.
    """
    if arch not in ARCH_FAMILY:
        raise TargetError(f"there are no kernels for sm_{arch}; choose of {choices()}")
    return ARCH_FAMILY[arch]


def default_device(arch: int) -> str:
    """The device, by its name in the device table, that an arch's kernels are predicted for."""
    return _DEFAULT_DEVICE[min(arch, 90)]


def shared_memory(arch: int) -> int:
    """Bytes of shared memory that one block may use."""
    return _SHARED_KIB[arch] * 1024


def _shared_everywhere(archs: Sequence[int]) -> int:
    """Bytes of shared memory that one block may use wherever a family's code runs.

    Machine code runs on later devices of the same major version (sm_80's on an L4), PTX on any
    later one (sm_90's on an RTX 5090), and some of these have less. What that costs an A100 or H200
    in predicted time of a ResNet is below 0.1 %.
    """
    family = ARCH_FAMILY[archs[0]]
    runs = [a for a, own in ARCH_FAMILY.items() if own == family and a >= archs[0]]
    return min(shared_memory(arch) for arch in runs)


def int4_note(arch: int) -> str:
    """How layers of 4-bit weights and activations run on an arch, in one sentence."""
    family = family_of_arch(arch)
    if family == 75:
        return f"sm_{arch}: int4 layers run on int4 tensor cores (mma m8n8k32)"
    if family == 80:
        return f"sm_{arch}: int4 layers run on int4 tensor cores (mma m16n8k64)"
    return (
        f"sm_{arch} has no int4 tensor cores: int4 layers run as int8 mma with nibbles widened in "
        "registers"
    )


def host_target() -> Target:
    """Target of the code that launches kernels: any CPU of this machine's architecture.

    A library for a GPU is made on one machine and run on another, and nothing that takes time runs
    on the CPU.
    """
    if platform.machine() in ("x86_64", "AMD64"):
        return Target({"kind": "llvm", "mcpu": "x86-64"})
    return Target("llvm")


def choices() -> str:
    """The archs that there are, for messages."""
    return ", ".join(f"sm_{arch}" for arch in ARCH_FAMILY)


def _archs(names: Iterable[str], text: str) -> tuple[int, ...]:
    """Archs of names such as sm_75; sm_90a is sm_90: no kernel uses what the former adds."""
    found = []
    for name in names:
        match = re.fullmatch(r"sm_(\d+)[af]?", name.strip())
        if match is None or int(match[1]) not in ARCH_FAMILY:
            what = f"{name.strip()!r} is no architecture that there are kernels for"
            raise TargetError(f"target {text!r}: {what}; choose of {choices()}")
        found.append(int(match[1]))
    return tuple(found)
