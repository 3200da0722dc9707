"""Datasheet tables of NVIDIA GPUs, and the device that a CUDA target is meant for.

Kernels are compiled where there may be no GPU, so everything that the tile model of `cost` needs to
know about a device is written here. Nothing in this file was measured by this project.

Sources, by field
-----------------
``sms``, ``boost_ghz``, ``dram_gbs``, ``l2_mb``
    Datasheets, as tabled in NVIDIA's T4, A100, A10, RTX 3090, L4, RTX 4090, H100 and H200 data
    sheets and architecture whitepapers. An H200 reports 60 MB of L2 at run time.
``int8_macs``, ``int4_macs``
    Dense datasheet rate over SMs and boost clock (T4: 130.3 TOPS / 2 / 40 / 1.59 GHz = 1024). 0
    where no int4 tensor path exists: there ``mma .s4`` is emulated at 2 % of the int8 rate.
``sustained_ghz``
    T4 only: users report 900 MHz under tensor load at its 70 W cap (mlcommons
    inference_results_v0.5 issue 20), and NVIDIA advises to lock that clock to compare kernels
    (CUTLASS issue 154). None: the boost clock is taken to hold.
``mma_efficiency``
    What register-resident ``mma.sync`` reaches of the peak: H100 0.84 and GA100 0.83 for int8
    (mmapeak's result files); CUTLASS on an A100 reaches 0.80 with everything else included. Others
    are taken as 0.9.
``l2_gbs``
    Approximate (microbenchmark class, at the boost clock): the value most in need of a measurement.
``l2_latency_ns``, ``dram_latency_ns``
    Approximate pointer-chasing cycles over the boost clock, not re-read for this table: RTX 4090
    273 / 542, A100 262 / 466, H100 263 / 479 (as in Luo et al., arXiv 2402.13499), T4 188 for L2
    (as in Jia et al., arXiv 1903.07486). Others follow their architecture.
Per-SM and per-block limits
    CUDA C++ Programming Guide, table of technical specifications per compute capability (shared
    memory of a block: `tvm_q4.cuda_target`).
``launch_us``
    Start-to-start floor of dependent kernels in a CUDA graph; an assumption.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from tvm.target import Target

from tvm_q4.cuda_target import default_device, family_of_arch, shared_memory
from tvm_q4.errors import TargetError

KIB = 1024
DEVICE_KEY = "device-"
"""Prefix of the target key that names a device, as in ``device-l4``."""


@dataclass(frozen=True)
class Device:
    """What the tile model knows about a GPU; every figure is a datasheet or literature value.

    Attributes
    ----------
    name : str
        Key in `DEVICES`.
    arch : int
        Compute capability, such as 75.
    sms : int
        Streaming multiprocessors.
    boost_ghz : float
        Boost clock.
    int8_macs, int4_macs : int
        Dense multiply-accumulates per SM and cycle; `int4_macs` is 0 without an int4 tensor path.
    dram_gbs, l2_gbs : float
        Bandwidths in 1e9 bytes per second, L2's at the boost clock.
    l2_mb : float
        L2 capacity in MiB.
    shared_per_sm, shared_per_block : int
        Bytes of shared memory, the largest that can be asked for.
    threads_per_sm, blocks_per_sm : int
        Residency limits.
    l2_latency_ns, dram_latency_ns : float
        Latency of a load that hits L2, and of one that misses it.
    launch_us : float
        Least time between the starts of dependent kernels.
    sustained_ghz : float or None
        Clock held under tensor load where it is known to lie below the boost clock.
    mma_efficiency : float
        Fraction of the peak rate that ``mma.sync`` reaches with operands in registers.
    registers_per_sm, shared_bytes_clk, issue_lanes : int
        32-bit registers, shared-memory bytes and threads' instructions issued, per SM (and cycle).
    """

    name: str
    arch: int
    sms: int
    boost_ghz: float
    int8_macs: int
    int4_macs: int
    dram_gbs: float
    l2_mb: float
    l2_gbs: float
    shared_per_sm: int
    shared_per_block: int
    threads_per_sm: int
    blocks_per_sm: int
    l2_latency_ns: float
    dram_latency_ns: float
    launch_us: float
    sustained_ghz: float | None = None
    mma_efficiency: float = 0.9
    registers_per_sm: int = 65536
    shared_bytes_clk: int = 128
    issue_lanes: int = 128

    @property
    def clock_ghz(self) -> float:
        """Clock that predictions use: the sustained one where it is known."""
        return self.sustained_ghz or self.boost_ghz

    @property
    def has_int4(self) -> bool:
        """Whether int4 operands go through the tensor cores as they are."""
        return self.int4_macs > 0

    @property
    def warps_per_sm(self) -> int:
        """Most resident warps."""
        return self.threads_per_sm // 32

    @property
    def family(self) -> int:
        """Kernel family of the device (75, 80 or 90)."""
        return family_of_arch(self.arch)

    @property
    def shared_reserved(self) -> int:
        """Bytes of shared memory that the system keeps of every block."""
        return 0 if self.arch < 80 else KIB


# Residency by compute capability: shared KiB, threads and blocks per SM.
_LIMITS = {
    75: (64, 1024, 16),
    80: (164, 2048, 32),
    86: (100, 1536, 16),
    89: (100, 1536, 24),
    90: (228, 2048, 32),
}


def _device(name: str, arch: int, **figures: float) -> Device:
    per_sm, threads, blocks = _LIMITS[arch]
    limits = {
        "shared_per_sm": per_sm * KIB,
        "shared_per_block": shared_memory(arch),
        "threads_per_sm": threads,
        "blocks_per_sm": blocks,
    }
    return Device(name, arch, **(limits | figures))  # type: ignore[arg-type]


_TURING = dict(int8_macs=1024, int4_macs=2048, launch_us=2.5)
_GA100 = dict(int8_macs=2048, int4_macs=4096, launch_us=1.5, mma_efficiency=0.83)
_ADA = dict(int8_macs=1024, int4_macs=2048, launch_us=1.5)  # and GA102
_HOPPER = dict(int8_macs=4096, int4_macs=0, launch_us=1.3, mma_efficiency=0.84)

_A100 = dict(sms=108, boost_ghz=1.41, l2_mb=40, l2_gbs=4500, l2_latency_ns=185, dram_latency_ns=330)
_GA102 = dict(boost_ghz=1.695, l2_mb=6, l2_gbs=2200, l2_latency_ns=150, dram_latency_ns=300)
_GH100 = dict(sms=132, boost_ghz=1.83, l2_gbs=5600, l2_latency_ns=145, dram_latency_ns=270)

DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            _device(
                "t4",
                75,
                sms=40,
                boost_ghz=1.59,
                sustained_ghz=0.9,
                dram_gbs=320,
                l2_mb=4,
                l2_gbs=1270,
                l2_latency_ns=120,
                dram_latency_ns=350,
                **_TURING,
            ),
            _device("a100", 80, dram_gbs=1555, **_A100, **_GA100),
            _device("a100-80gb", 80, dram_gbs=2039, **_A100, **_GA100),
            _device("rtx3090", 86, sms=82, dram_gbs=936, **_GA102, **_ADA),
            _device("a10", 86, sms=72, dram_gbs=600, **_GA102, **_ADA),
            _device(
                "l4",
                89,
                sms=58,
                boost_ghz=2.04,
                dram_gbs=300,
                l2_mb=48,
                l2_gbs=2000,
                l2_latency_ns=134,
                dram_latency_ns=265,
                **_ADA,
            ),
            _device(
                "rtx4090",
                89,
                sms=128,
                boost_ghz=2.52,
                dram_gbs=1008,
                l2_mb=72,
                l2_gbs=5000,
                l2_latency_ns=108,
                dram_latency_ns=215,
                **_ADA,
            ),
            _device("h100", 90, dram_gbs=3350, l2_mb=50, **_GH100, **_HOPPER),
            _device("h200", 90, dram_gbs=4800, l2_mb=60, **_GH100, **_HOPPER),
        )
    }
)
"""Every device that can be named, by name."""


@lru_cache(maxsize=64)
def family_of(target: Target) -> int:
    """Kernel family of a CUDA target: 75, 80 (sm_80 to sm_89) or 90 (sm_90 and later).

    Raises
    ------
    TargetError
        If the target is not a CUDA one, or its architecture has no kernels here.
    """
    return family_of_arch(_arch_of(target))


@lru_cache(maxsize=64)
def device_of(target: Target) -> Device:
    """The device whose figures choose tiles for a CUDA target.

    A key ``device-<name>`` of the target names it; otherwise it is the default of the architecture.
    Where the target limits the shared memory of a block, because the code must also run on another
    architecture, the device takes that limit.

    Parameters
    ----------
    target : tvm.target.Target
        Of kind ``cuda`` with an ``arch``.

    Raises
    ------
    TargetError
        If the target is not a CUDA one of a known architecture, or the named device is unknown or
        of another kernel family.
    """
    arch = _arch_of(target)
    names = [str(k).removeprefix(DEVICE_KEY) for k in target.keys if str(k).startswith(DEVICE_KEY)]
    device = _named(names[0] if names else default_device(arch), arch)
    limit = int(target.attrs.get("max_shared_memory_per_block", shared_memory(arch)))
    return dataclasses.replace(device, shared_per_block=min(device.shared_per_block, limit))


def _arch_of(target: Target) -> int:
    """Compute capability of a CUDA target, such as 80."""
    match = re.fullmatch(r"sm_(\d+)[af]?", str(target.attrs.get("arch", "")))
    if target.kind.name != "cuda" or match is None:
        msg = f"target {target} is not a CUDA architecture; use one such as cuda:sm_80"
        raise TargetError(msg)
    arch = int(match[1])
    family_of_arch(arch)  # refuses architectures that there are no kernels for
    return arch


def _named(name: str, arch: int) -> Device:
    if name not in DEVICES:
        raise TargetError(f"device {name!r} is unknown; use one of {', '.join(DEVICES)}")
    device = DEVICES[name]
    if device.family != family_of_arch(arch):
        msg = (
            f"device {name!r} (sm_{device.arch}) does not run the kernels of sm_{arch}; "
            "name a device of that architecture or none"
        )
        raise TargetError(msg)
    return device
