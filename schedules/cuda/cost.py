"""Analytic tile model of tensor-core kernels: predicted microseconds, never measured ones.

A convolution is an implicit GEMM cut into CTA tiles (`tile`). The time of a kernel is its launch,
then what its SMs, L2 and DRAM need side by side, then the second kernel of a split K::

    us = launch + norm(SM, L2, DRAM) + reduce

The norm is a soft maximum: streams that take alike long do not overlap perfectly. The busiest SM
works through ``b = ceil(CTAs / SMs)`` CTAs, of which `occupancy` are resident at a time. ``pipe``
is the time that one CTA keeps the SM's busiest unit, ``chain`` the time from its start to its end
when it is alone. CTAs of one SM overlap in everything but their busiest unit, and one chain is
always seen; this is where waves and their tail come from::

    SM = max((b - 1) * pipe + chain, ceil(b / occupancy) * chain)

Units of an SM are its tensor cores, its shared memory (what ``ldmatrix`` reads for every warp tile,
and what the copies write), its issue slots (copies, widening, epilogue) and its port to L2. A chain
is the fill of the pipeline (one DRAM latency and the first stage), the steps of the main loop, and
the epilogue. A step takes what its own CTA needs of the slowest unit and a barrier, or else the
latency of a load (in a queue) over the stages in flight. The two stages of sm_75 are one step
ahead: registers hold the loads of the next one.

Sources. The wave and L2 terms are those of the roofline's tile bound (performance.md, section 4);
feed ratios of warp tiles and the fixed practices are its section 6, widening is its section 1.

Calibration. `SOLO_WARP` and `STEP_CYCLES` follow CUTLASS int4 convolutions at batch 1 on an RTX
3090, where a few CTAs walk all of K alone; `OVERLAP` its large ones; `SETUP_CYCLES` the batch-1 and
batch-8 latencies of MLPerf; instructions are counted in the SASS of our kernels. The tests state
how far ResNet-50 then is from MLPerf's results on T4, A100, L4 and H200 (vendor engines that fuse
more and, on Hopper, use ``wgmma``). A run on an H200 would correct, in this order: `SETUP_CYCLES`
and ``launch_us`` (all small layers), `ISSUE_EFFICIENCY` (the 1x1 expansions, whose time is the
epilogue's), ``l2_gbs``, ``mma_efficiency`` and `SOLO_WARP` (3x3 layers at large batch). What it
says of the device itself changes no other device; those stay predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from tvm_q4.schedules.cuda.device import Device
from tvm_q4.schedules.cuda.tile import (
    CHUNK_BYTES,
    WORD_BYTES,
    GemmShape,
    Resources,
    Tile,
    blocks_per_sm,
    occupancy,
    resources,
)

__all__ = [
    "GemmShape",
    "Prediction",
    "Resources",
    "Tile",
    "blocks_per_sm",
    "occupancy",
    "predict_memory_us",
    "predict_us",
    "resources",
]

SUB_CORES = 4
SETUP_CYCLES = 1200.0
"""From the start of a CTA to its first load, and from its last store to its end."""

STEP_CYCLES = 60.0
"""Barrier and first fragment loads of a step that no other work of the CTA hides."""

QUEUE = 1.5
"""Latency of loads that wait behind others, over that of a lone one; an assumption."""

SOLO_WARP = 0.75
"""Part of a sub-core's tensor rate that one warp reaches; two reach all of it."""

ISSUE_EFFICIENCY = 0.75
"""Part of the issue slots that integer code fills: dependences, register banks, one pipe or two."""

COPY_OPS = 7.0
"""Instructions of a thread for each 16-byte copy, with its part of the loop around it."""

WIDEN_OPS = 3.0
"""Instructions that turn a word of eight 4-bit values into two words of bytes."""

EPILOGUE_OPS = 5.3
"""Issue slots an output: SASS of our kernels has 4.0 instructions, 1.3 of them 64-bit products,
which take two."""

SKIP_OPS = 2.5
"""More of them for a residual: SASS has 5.8 instructions, 2.3 of them 64-bit products."""

PARTIAL_OPS = 1.0
"""Issue slots of a partial sum, stored or read as it is."""

PORT_BYTES_CLK = 64
"""Bytes that an SM takes from or gives to L2 in a cycle."""

DRAM_EFFICIENCY = 0.88
"""Part of the datasheet's bandwidth that streaming kernels reach."""

OVERLAP = 6
"""Exponent of the norm that joins the SM, L2 and DRAM times; a plain maximum would be infinity."""

L2_USABLE = 0.8
"""Part of L2 that a layer's tensors may fill and still be found there (as the roofline assumes)."""


@dataclass(frozen=True)
class Prediction:
    """A predicted time.

    Attributes
    ----------
    us : float
        Predicted microseconds of the layer, with its launches.
    parts : mapping of str to float
        Microseconds that each term would take by itself (they overlap, so they do not add up to
        `us`): ``mma``, ``shared``, ``alu``, ``port``, ``l2``, ``dram``, ``fill``, ``epilogue``,
        ``launch``, ``reduce``; and ``waves``, a count.
    """

    us: float
    parts: Mapping[str, float]


class _Step(NamedTuple):
    """What one step of the main loop takes: bytes from L2, cycles of each unit of an SM."""

    bytes: float
    mma: float
    shared: float
    alu: float
    port: float


def predict_us(shape: GemmShape, tile: Tile, device: Device) -> Prediction:
    """Predict the time of a layer with a tile.

    Parameters
    ----------
    shape : GemmShape
    tile : Tile
    device : Device

    Returns
    -------
    Prediction
        With infinite `us` and no parts where the tile does not fit the device, or the device has no
        tensor path for ``bits_mma``.
    """
    resident = occupancy(tile, device, shape.b_ratio, shape.skip_bytes > 0)
    if resident == 0 or (shape.bits_mma == 4 and not device.has_int4):
        return Prediction(float("inf"), {})
    clock = device.clock_ghz * 1e3  # cycles per microsecond
    steps = ceil(ceil(shape.k_bytes / tile.split_k) / tile.bk_bytes)
    ctas = ceil(shape.m / tile.bm) * ceil(shape.n / tile.bn) * tile.split_k * shape.groups
    blocks = ceil(ctas / device.sms)
    step = _step(shape, tile, device)
    cached = _fits_l2(_tensor_bytes(shape), device)
    latency = (device.l2_latency_ns if cached else device.dram_latency_ns) * clock / 1e3

    # A CTA alone, from its start to its end.
    alone = _slowdown(tile.warps)
    busy = max(step.mma * alone, step.shared, step.alu * alone, step.port) + STEP_CYCLES
    fill = SETUP_CYCLES + device.dram_latency_ns * clock / 1e3 + step.port
    finish, moved = _finish(shape, tile, device)
    epilogue = finish * alone + moved / PORT_BYTES_CLK + latency
    wait = QUEUE * latency / max(1, tile.stages - 1)
    chain = fill + steps * max(busy, wait) + epilogue

    # The unit of the SM that it keeps busy longest when it has company.
    together = _slowdown(tile.warps * min(resident, blocks))
    pipes = {
        "mma": steps * step.mma * together,
        "shared": steps * step.shared,
        "alu": (steps * step.alu + finish) * together,
        "port": steps * step.port + moved / PORT_BYTES_CLK,
    }
    pipe = max(pipes.values())
    sm = max((blocks - 1) * pipe + chain, ceil(blocks / resident) * chain) / clock

    l2, dram = _memory_us(shape, tile, ctas * steps * step.bytes, cached, device)
    reduce = _reduce_us(shape, tile, device) if tile.split_k > 1 else 0.0
    us = device.launch_us + _overlapped(sm, l2, dram) + reduce
    parts = {name: blocks * cycles / clock for name, cycles in pipes.items()}
    parts |= {"l2": l2, "dram": dram, "fill": fill / clock, "epilogue": epilogue / clock}
    parts |= {"launch": device.launch_us, "reduce": reduce}
    return Prediction(us, parts | {"waves": ceil(ctas / (device.sms * resident))})


def predict_memory_us(bytes_read: float, bytes_written: float, device: Device) -> float:
    """Predicted microseconds of a kernel that moves bytes and computes little.

    Parameters
    ----------
    bytes_read, bytes_written : float
        Each byte counted once.
    device : Device
    """
    return _stream_us(bytes_read + bytes_written, 0.0, device)


def _step(shape: GemmShape, tile: Tile, device: Device) -> _Step:
    b_ratio = shape.b_ratio
    rate = device.int8_macs if shape.bits_mma == 8 else device.int4_macs
    macs = tile.bm * tile.bn * tile.bk_bytes * shape.k_ops / shape.k_bytes
    stage = (tile.bm + tile.bn * b_ratio) * tile.bk_bytes
    fragments = tile.warps * (tile.wm + tile.wn * b_ratio) * tile.bk_bytes
    ops = stage / CHUNK_BYTES * COPY_OPS
    if shape.widen:
        a_packed = shape.k_ops > shape.k_bytes
        b_packed = b_ratio <= 1.0 if a_packed else b_ratio < 1.0
        rows = tile.wm * a_packed + tile.wn * b_ratio * b_packed
        ops += WIDEN_OPS * tile.warps * rows * tile.bk_bytes / WORD_BYTES
    return _Step(
        bytes=stage,
        mma=macs / (rate * device.mma_efficiency),
        shared=(fragments + stage) / device.shared_bytes_clk,
        alu=ops / _issue_rate(device),
        port=stage / PORT_BYTES_CLK,
    )


def _finish(shape: GemmShape, tile: Tile, device: Device) -> tuple[float, float]:
    """Cycles of the issue slots, and bytes moved, for the outputs of a full tile."""
    outputs = tile.bm * tile.bn
    if tile.split_k > 1:
        return outputs * PARTIAL_OPS / _issue_rate(device), outputs * WORD_BYTES
    moved = outputs * (shape.out_bytes + shape.skip_bytes) / shape.outputs
    return outputs * _output_ops(shape) / _issue_rate(device), moved


def _memory_us(
    shape: GemmShape, tile: Tile, operands: float, cached: bool, device: Device
) -> tuple[float, float]:
    """Times of L2 and DRAM over a whole kernel whose tiles load `operands` bytes."""
    if tile.split_k > 1:
        results = float(_partial_bytes(shape, tile))
        spilled = 0.0 if _fits_l2(results, device) else results
    else:
        results = float(shape.out_bytes + shape.skip_bytes)
        spilled = 0.0 if cached else results
    activations = 0 if cached else shape.a_bytes_unique
    dram = (shape.b_bytes + activations + spilled) / _dram_rate(device)
    return (operands + results) / _l2_rate(device), dram


def _reduce_us(shape: GemmShape, tile: Tile, device: Device) -> float:
    """Time of the kernel that adds the partial sums and requantizes them."""
    ops = shape.outputs * (tile.split_k * PARTIAL_OPS + _output_ops(shape))
    return _stream_us(_partial_bytes(shape, tile) + shape.skip_bytes + shape.out_bytes, ops, device)


def _stream_us(moved: float, ops: float, device: Device) -> float:
    """Launch, one latency, then the larger of bytes at their bandwidth and instructions."""
    rate = _l2_rate(device) if _fits_l2(moved, device) else _dram_rate(device)
    clock = device.clock_ghz * 1e3
    alu = ops / (device.sms * _issue_rate(device) * clock)
    start = SETUP_CYCLES / clock + device.dram_latency_ns / 1e3
    return device.launch_us + start + max(moved / rate, alu)


def _overlapped(*times: float) -> float:
    """Time of streams that run side by side and now and then wait for each other."""
    return sum(t**OVERLAP for t in times) ** (1 / OVERLAP)


def _slowdown(warps: int) -> float:
    """Time of an SM's units over their best with `warps` resident: idle sub-cores, solo warps."""
    per_core = warps / SUB_CORES
    return 1 / min(SOLO_WARP * per_core, SOLO_WARP + (1 - SOLO_WARP) * (per_core - 1), 1.0)


def _issue_rate(device: Device) -> float:
    """Integer instructions of threads that an SM runs in a cycle."""
    return device.issue_lanes * ISSUE_EFFICIENCY


def _output_ops(shape: GemmShape) -> float:
    return EPILOGUE_OPS + (SKIP_OPS if shape.skip_bytes else 0.0)


def _partial_bytes(shape: GemmShape, tile: Tile) -> int:
    return WORD_BYTES * shape.outputs * tile.split_k


def _tensor_bytes(shape: GemmShape) -> int:
    return shape.a_bytes_unique + shape.b_bytes + shape.out_bytes + shape.skip_bytes


def _fits_l2(size: float, device: Device) -> bool:
    return size <= L2_USABLE * device.l2_mb * 2**20


def _l2_rate(device: Device) -> float:
    """Bytes per microsecond, at the clock that predictions use."""
    return device.l2_gbs * 1e3 * device.clock_ghz / device.boost_ghz


def _dram_rate(device: Device) -> float:
    """Bytes per microsecond."""
    return device.dram_gbs * 1e3 * DRAM_EFFICIENCY
