"""The implicit GEMM of a layer, how a kernel tiles it, and what such a kernel takes of an SM.

Registers are estimated as accumulators, fragments of one step, words staged by the copies (sm_75),
a pointer a copy, `BASE_REGISTERS` and what a residual takes, rounded up to the unit of 8 in which
they are allocated. nvcc takes more for large tiles (220 for 200) and less for small ones, because
it keeps loads in flight where registers are left; what counts is that as many CTAs fit an SM, and
``tests/schedules/cuda/resources.py`` is the gate for that. Shared memory is the stages of both
operands; the epilogue needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from tvm_q4.schedules.cuda.device import Device

WARP = 32
WORD_BYTES = 4
CHUNK_BYTES = 16
"""Bytes of one copy from global to shared memory by one thread."""

MAX_REGISTERS = 255
MAX_THREADS = 1024
REGISTER_UNIT = 8
BASE_REGISTERS = 32
"""Loop counters, shared-memory addresses, descriptors of the convolution."""

SKIP_REGISTERS = 16
"""Residuals, and their constants, that the epilogue holds beside the sums."""


@dataclass(frozen=True)
class GemmShape:
    """A convolution or dense layer as the kernel sees it, padded as its tensors are.

    Attributes
    ----------
    m, n : int
        Output pixels of the whole batch, output channels (of one group).
    k_bytes : int
        Packed bytes of the activations behind one output.
    k_ops : int
        Multiply-accumulates per output over the same padded elements: ``k_bytes`` times 1 or 2.
    a_bytes_unique : int
        Bytes of the activation tensor, each counted once.
    b_bytes, out_bytes, skip_bytes : int
        Bytes of weights, results, and of the residual operand (0 where there is none).
    bits_mma : int
        Operand width of the tensor-core instruction, 4 or 8.
    widen : bool
        Whether 4-bit operands in memory are widened to bytes in registers.
    groups : int
        Independent products of this shape.
    """

    m: int
    n: int
    k_bytes: int
    k_ops: int
    a_bytes_unique: int
    b_bytes: int
    out_bytes: int
    skip_bytes: int = 0
    bits_mma: int = 8
    widen: bool = False
    groups: int = 1

    @property
    def outputs(self) -> int:
        """Results of all groups."""
        return self.m * self.n * self.groups

    @property
    def b_ratio(self) -> float:
        """Bytes of a weight in memory over bytes of the activation that it meets."""
        return self.b_bytes / (self.n * self.groups * self.k_bytes)


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its product.

    Attributes
    ----------
    bm, bn : int
        Outputs of a CTA: pixels and channels.
    bk_bytes : int
        Bytes of an activation row that one step of the main loop takes.
    wm, wn : int
        Outputs of a warp.
    stages : int
        Shared-memory buffers of both operands.
    split_k : int
        CTAs that share the K of one tile; their int32 sums meet in a second kernel.
    """

    bm: int
    bn: int
    bk_bytes: int
    wm: int
    wn: int
    stages: int
    split_k: int = 1

    @property
    def warps(self) -> int:
        """Warps of a CTA."""
        return (self.bm // self.wm) * (self.bn // self.wn)


@dataclass(frozen=True)
class Resources:
    """What a CTA takes: threads, bytes of shared memory, registers of a thread."""

    threads: int
    shared: int
    registers: int


@lru_cache(maxsize=4096)
def resources(tile: Tile, family: int, b_ratio: float = 1.0, residual: bool = False) -> Resources:
    """Estimate what a CTA of the kernel takes.

    Parameters
    ----------
    tile : Tile
    family : int
        75, 80 or 90.
    b_ratio : float
        `GemmShape.b_ratio`.
    residual : bool
        Whether the epilogue adds a residual.
    """
    threads = WARP * tile.warps
    stage = int((tile.bm + tile.bn * b_ratio) * tile.bk_bytes)
    chunks = ceil(stage / CHUNK_BYTES / threads)
    # A step of 32 bytes along K holds a word per row and lane-quad in each of its two halves.
    fragments = (tile.wm + tile.wn) // 8 * 2
    staged = chunks * CHUNK_BYTES // WORD_BYTES if family == 75 else 0
    accumulators = tile.wm * tile.wn // WARP
    registers = accumulators + fragments + staged + chunks + BASE_REGISTERS
    registers += SKIP_REGISTERS if residual else 0
    return Resources(threads, tile.stages * stage, _allocated(registers))


def blocks_per_sm(used: Resources, device: Device) -> int:
    """CTAs that an SM holds at a time; 0 where not even one can start.

    Parameters
    ----------
    used : Resources
        As estimated, or as read from a compiled kernel.
    device : Device
    """
    fits = used.threads <= MAX_THREADS and used.registers <= MAX_REGISTERS
    if not fits or used.shared > device.shared_per_block:
        return 0
    per_warp = _allocated(used.registers) * WARP
    warps = min(device.registers_per_sm // per_warp, device.warps_per_sm)
    by_shared = device.shared_per_sm // max(1, used.shared + device.shared_reserved)
    return min(by_shared, warps // (used.threads // WARP), device.blocks_per_sm)


def stated_blocks(used: Resources, device: Device) -> int:
    """CTAs of an SM that nvcc is told to leave registers for; 0 where it has some to spare.

    It takes all that it may, so that it is told of a limit only where its choice might be above.

    Parameters
    ----------
    used : Resources
        As estimated.
    device : Device
    """
    blocks = blocks_per_sm(used, device)
    if not blocks:
        return 0
    spare = device.registers_per_sm // (blocks * used.threads) - used.registers
    return blocks if spare < REGISTER_UNIT else 0


def occupancy(tile: Tile, device: Device, b_ratio: float = 1.0, residual: bool = False) -> int:
    """CTAs of the kernel that an SM holds at a time; 0 where the tile does not fit.

    Parameters are those of `resources`.
    """
    return blocks_per_sm(resources(tile, device.family, b_ratio, residual), device)


def _allocated(registers: int) -> int:
    return -(-registers // REGISTER_UNIT) * REGISTER_UNIT
