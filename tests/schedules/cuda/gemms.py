"""Layers of the roofline's networks as the tile model sees them, and a search space of tiles."""

from __future__ import annotations

import itertools
from typing import Any

from tvm_q4.schedules.cuda.cost import (
    GemmShape,
    Prediction,
    Tile,
    occupancy,
    predict_memory_us,
    predict_us,
)
from tvm_q4.schedules.cuda.device import Device


def conv(
    batch: int,
    side: int,
    channels: int,
    out_channels: int,
    kernel: int,
    bits: int,
    device: Device,
    stride: int = 1,
    residual: bool = False,
) -> GemmShape:
    """A square convolution to outputs of `bits`; its weights are bytes where data is widened."""
    widen = bits == 4 and not device.has_int4
    m, k = batch * (side // stride) ** 2, kernel * kernel * channels
    touched = 1 / stride**2 if kernel == 1 else 1
    return GemmShape(
        m=m,
        n=out_channels,
        k_bytes=k * bits // 8,
        k_ops=k,
        a_bytes_unique=int(batch * side**2 * channels * touched) * bits // 8,
        b_bytes=out_channels * k * (8 if widen else bits) // 8,
        out_bytes=m * out_channels * bits // 8,
        skip_bytes=m * out_channels * bits // 8 if residual else 0,
        bits_mma=8 if widen else bits,
        widen=widen,
    )


def layer(row: dict[str, Any], batch: int, bits: int, device: Device) -> GemmShape:
    """A row of ``networks[...]["layers"]`` in roofline.json: stem and classifier are 8-bit."""
    if row["name"] == "conv1":  # 3 channels lie as 4, a row of the window in whole 16 bytes
        m = batch * row["out"] ** 2
        image = batch * row["h"] ** 2 * 4
        return GemmShape(m, row["k"], 7 * 32, 7 * 32, image, 7 * 32 * row["k"], m * row["k"])
    edge = row["name"] == "fc"
    return conv(
        batch,
        row["h"],
        row["c"],
        row["k"],
        row["r"],
        8 if edge else bits,
        device,
        row["stride"],
        row["residual"],
    )


def tiles(device: Device) -> list[Tile]:
    """Tiles that fit the device."""
    stages = (2,) if device.family == 75 else (3, 4)
    warps = ((32, 32), (32, 64), (64, 32), (64, 64))
    shapes = itertools.product((32, 64, 128, 256), (32, 64, 128), (32, 64, 128), warps)
    found = [
        Tile(bm, bn, bk, wm, wn, s, split)
        for (bm, bn, bk, (wm, wn)), s, split in itertools.product(shapes, stages, (1, 2, 4, 8, 16))
        if wm <= bm and wn <= bn and bm * bn <= 8 * wm * wn
    ]
    return [t for t in found if occupancy(t, device)]


def best(shape: GemmShape, device: Device, choices: list[Tile]) -> tuple[Prediction, Tile]:
    """The fastest tile by prediction."""
    useful = [t for t in choices if t.split_k == 1 or t.split_k * t.bk_bytes <= shape.k_bytes]
    return min(((predict_us(shape, t, device), t) for t in useful), key=lambda found: found[0].us)


def network_us(rows: list[dict[str, Any]], batch: int, bits: int, device: Device) -> float:
    """Predicted time of a whole ResNet: its layers, the input's quantization and both pools."""
    choices = tiles(device)
    shapes = [layer(row, batch, bits, device) for row in rows]
    times = {shape: best(shape, device, choices)[0].us for shape in set(shapes)}
    image, stem, last = 3 * 224**2, 112**2 * 64, 49 * rows[-1]["c"]
    moved = [(4 * image, 4 * 224**2), (stem, stem // 4), (last * bits // 8, last // 49)]
    other = sum(predict_memory_us(batch * read, batch * write, device) for read, write in moved)
    return sum(times[shape] for shape in shapes) + other
