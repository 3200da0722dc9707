"""HAWQ-V3's published numbers as layer tables, with sensitivities of our own.

Latencies are those of its integer program (T4, batch 8). ResNet-18 is typed here; both networks are
in the data folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESNET18 = (
    ("stage1.unit1.quant_convbn1", 36864, 115605504, 0.21094, 0.36189),
    ("stage1.unit1.quant_convbn2", 36864, 115605504, 0.21093, 0.36212),
    ("stage1.unit2.quant_convbn1", 36864, 115605504, 0.21104, 0.31142),
    ("stage1.unit2.quant_convbn2", 36864, 115605504, 0.21087, 0.30454),
    ("stage2.unit1.quant_convbn1", 73728, 57802752, 0.13642, 0.19185),
    ("stage2.unit1.quant_convbn2", 147456, 115605504, 0.19168, 0.38949),
    ("stage2.unit1.quant_identity_convbn", 8192, 6422528, 0.02532, 0.03342),
    ("stage2.unit2.quant_convbn1", 147456, 115605504, 0.19148, 0.38905),
    ("stage2.unit2.quant_convbn2", 147456, 115605504, 0.19143, 0.38929),
    ("stage3.unit1.quant_convbn1", 294912, 57802752, 0.11395, 0.19135),
    ("stage3.unit1.quant_convbn2", 589824, 115605504, 0.20556, 0.34307),
    ("stage3.unit1.quant_identity_convbn", 32768, 6422528, 0.01917, 0.02802),
    ("stage3.unit2.quant_convbn1", 589824, 115605504, 0.20567, 0.34313),
    ("stage3.unit2.quant_convbn2", 589824, 115605504, 0.20567, 0.34311),
    ("stage4.unit1.quant_convbn1", 1179648, 57802752, 0.13185, 0.21117),
    ("stage4.unit1.quant_convbn2", 2359296, 115605504, 0.22288, 0.37377),
    ("stage4.unit1.quant_identity_convbn", 131072, 6422528, 0.01790, 0.02897),
    ("stage4.unit2.quant_convbn1", 2359296, 115605504, 0.22305, 0.37398),
    ("stage4.unit2.quant_convbn2", 2359296, 115605504, 0.22286, 0.37405),
)
"""Name, parameters, MACs of an image, milliseconds at 4 and at 8 bits."""


def resnet18(sensitivities: Sequence[float]) -> dict[str, Any]:
    """Table of the typed numbers; sensitivities are those at 4 bits."""
    rows = [
        {
            "name": name,
            "params": params,
            "macs": macs,
            "latency_ms": {"4": four, "8": eight},
        }
        for name, params, macs, four, eight in RESNET18
    ]
    return _table("resnet18", rows, sensitivities)


def published(data_dir: Callable[..., Path], network: str, seed: int) -> dict[str, Any]:
    """Table of the published files' numbers with random sensitivities."""
    shapes = json.loads(data_dir("hawq-v3", "bit_configs.json").read_text())["layers"][network]
    times = json.loads(data_dir("hawq-v3", "t4_layer_latency.json").read_text())["network"]
    by_name = {layer["name"]: layer for layer in times[network]["layers"]}
    rows = [
        {
            "name": layer["name"],
            "params": layer["params"],
            "macs": layer["macs_per_image"],
            "latency_ms": {
                "4": round(by_name[layer["name"]]["ilp_int4_us"] / 1000, 5),
                "8": round(by_name[layer["name"]]["ilp_int8_us"] / 1000, 5),
            },
        }
        for layer in shapes
        if layer["name"] in by_name  # the first and the last layer are not planned
    ]
    return _table(network, rows, draw(len(rows), seed))


def draw(count: int, seed: int) -> list[float]:
    """Sensitivities of four decimals over three orders of magnitude."""
    return [
        round(float(value), 4) for value in np.random.default_rng(seed).lognormal(-3, 1.5, count)
    ]


def _table(
    network: str, rows: list[dict[str, Any]], sensitivities: Sequence[float]
) -> dict[str, Any]:
    for row, four in zip(rows, sensitivities, strict=True):
        row["sensitivity"] = {"4": four, "8": round(four / 280, 6)}
    units = [r["name"].removesuffix("_identity_convbn") for r in rows if "identity" in r["name"]]
    return {
        "format": "tvm-q4/layer-table",
        "version": 1,
        "network": network,
        "batch": 8,
        "target": "nvidia/nvidia-t4",
        "layers": rows,
        "tied": [[f"{unit}_convbn1", f"{unit}_identity_convbn"] for unit in units],
    }
