"""From measurements to a report: sizes, ratios to the baseline, Pareto fronts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tvm_q4.comparing.measure import latency_ratio

BASELINE = "uniform8"
COSTS = ("latency_ms", "bops", "weight_bytes")
"""What accuracy is plotted against."""
FLOAT_BITS = 32


def bits_label(layer: Mapping[str, Any]) -> str:
    """``8``, ``4``, ``w4a8`` or ``float``: a layer's precision, as layer tables name it."""
    weight, activation = layer["weight_bits"], layer["activation_bits"]
    if weight == FLOAT_BITS:
        return "float"
    return str(weight) if weight == activation else f"w{weight}a{activation}"


def uniform_bits(layers: Sequence[Mapping[str, Any]]) -> str | None:
    """The precision that all layers have but for the first and the last one, or None."""
    found = {bits_label(layer) for layer in layers[1:-1] or layers}
    return found.pop() if len(found) == 1 else None


def sizes(layers: Sequence[Mapping[str, Any]], weight_bytes: int | None) -> dict[str, Any]:
    """Sums over layers.

    Parameters
    ----------
    layers : sequence of mapping
        As in a library's metadata.
    weight_bytes : int, optional
        Bytes of all weights as they are deployed; the least possible where None.
    """
    ideal = sum(layer["params"] * layer["weight_bits"] for layer in layers) / 8
    return {
        "bits": dict(Counter(bits_label(layer) for layer in layers)),
        "params": sum(layer["params"] for layer in layers),
        "macs": sum(layer["macs"] for layer in layers),
        "bops": sum(layer["bops"] for layer in layers),
        "weight_bytes": math.ceil(ideal) if weight_bytes is None else weight_bytes,
        "weight_bytes_ideal": math.ceil(ideal),
    }


def accuracy_entry(found: Mapping[str, Any]) -> dict[str, Any]:
    """An accuracy with its standard error, from counts."""
    top1, n = found["top1"], found["n"]
    entry = {key: found[key] for key in ("top1", "top5", "n", "correct", "how")}
    return entry | {"stderr": math.sqrt(top1 * (1 - top1) / n), "source": "measured"}


def find_baseline(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Name of the row that others are compared with.

    The one called ``uniform8``, else that preset, else one whose layers are all at 8 bits, else the
    first quantized one.
    """
    quantized = [row for row in rows if row["kind"] != "float"]
    tests = (
        lambda row: row["name"] == BASELINE,
        lambda row: row["spec"] == BASELINE,
        lambda row: set(row["bits"]) == {"8"},
        lambda row: True,
    )
    found = (row["name"] for test in tests for row in quantized if test(row))
    return next(found, None)


def add_ratios(rows: Sequence[dict[str, Any]], baseline: str | None) -> None:
    """Give each row its ``ratios`` to the baseline, and what accuracy it ``loses`` against it."""
    base = next((row for row in rows if row["name"] == baseline), None)
    for row in rows:
        row["ratios"] = _ratios(row, base) if base is not None else {}
        both = base is not None and row["accuracy"] and base["accuracy"]
        row["accuracy_change"] = (
            row["accuracy"]["top1"] - base["accuracy"]["top1"]
            if base is not None and both
            else None
        )


def _ratios(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"latency": None}
    if row["latency"] and base["latency"]:
        out["latency"] = latency_ratio(row["latency"], base["latency"])
    for key in ("bops", "weight_bytes", "library_bytes"):
        known = row[key] is not None and base[key]
        out[key] = row[key] / base[key] if known else None
    return out


def cost(row: Mapping[str, Any], key: str) -> float | None:
    """A row's cost by a key of `COSTS`."""
    if key == "latency_ms":
        return row["latency"]["median_ms"] if row["latency"] else None
    value = row[key]
    return None if value is None else float(value)


def add_fronts(rows: Sequence[dict[str, Any]]) -> None:
    """Mark each row's ``front`` by cost: whether no other is as accurate and costs less.

    Rows without an accuracy, those that failed `verify`, and float ones are on none.
    """
    for key in COSTS:
        points = {
            row["name"]: (cost(row, key), row["accuracy"]["top1"])
            for row in rows
            if row["accuracy"] and row["kind"] != "float" and row["bit_exact"] is not False
        }
        known = {name: (c, a) for name, (c, a) in points.items() if c is not None}
        for row in rows:
            row.setdefault("front", {})[key] = row["name"] in pareto_front(known)


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names of the points (cost, accuracy) that no other point dominates.

    One point dominates another if it is no worse in both and better in one.
    """
    return {
        name
        for name, (cost, accuracy) in points.items()
        if not any(
            c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points.values()
        )
    }
