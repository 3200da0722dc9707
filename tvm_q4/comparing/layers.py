"""The per-layer part of a report: bits by config, latency at each precision, sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm_q4.comparing.build import Built
from tvm_q4.comparing.measure import layer_times, predicted_layer_times
from tvm_q4.comparing.summary import bits_label, uniform_bits
from tvm_q4.layer_table import LayerTable

PRECISIONS = ("8", "4", "w4a8")


def layer_rows(
    layers_of: Mapping[str, Sequence[Mapping[str, Any]]],
    built: Sequence[Built],
    table: LayerTable | None,
    seed: int,
) -> list[dict[str, Any]]:
    """One row a layer, in network order.

    Parameters
    ----------
    layers_of : mapping
        Layers of each config, as in a library's metadata.
    built : sequence of Built
        Where times come from if `table` has none: libraries of uniform precision.
    table : LayerTable, optional
        Latencies and sensitivities.
    seed : int

    Returns
    -------
    list of dict
        ``name``, ``params``, ``macs``, ``bits`` (precision by config), ``latency_ms`` and
        ``source`` by precision, ``sensitivity`` by precision.
    """
    rows: dict[str, dict[str, Any]] = {}
    for config, layers in layers_of.items():
        for layer in layers:
            row = rows.setdefault(layer["name"], _empty(layer))
            row["bits"][config] = bits_label(layer)
    timed = table is not None and any(row.latency_ms for row in table.layers)
    if not timed:
        _add_times(rows, built, seed)
    if table is not None:
        _add_table(rows, table)
    return list(rows.values())


def _empty(layer: Mapping[str, Any]) -> dict[str, Any]:
    start = {key: layer[key] for key in ("name", "params", "macs")}
    return start | {"bits": {}, "latency_ms": {}, "source": {}, "sensitivity": {}}


def _add_times(rows: dict[str, dict[str, Any]], built: Sequence[Built], seed: int) -> None:
    """Times of layers in the libraries of uniform precision; edge layers only at their own bits."""
    done: set[str] = set()
    for one in built:
        layers = one.library.metadata["layers"]
        bits = uniform_bits(layers)
        if bits not in PRECISIONS or bits in done:
            continue
        done.add(bits)
        if one.runs_here:
            times, source = layer_times(one.library, seed), f"measured in {one.config.name}"
        else:
            times, source = predicted_layer_times(one.library), "predicted"
        for layer in layers:
            own, name = bits_label(layer), layer["name"]
            if name in times and own not in rows[name]["latency_ms"]:
                rows[name]["latency_ms"][own] = times[name]
                rows[name]["source"][own] = source


def _add_table(rows: dict[str, dict[str, Any]], table: LayerTable) -> None:
    for entry in table.layers:
        row = rows.get(entry.name)
        if row is not None:
            row["latency_ms"] |= dict(entry.latency_ms)
            row["source"] |= {key: entry.source.get(key, "layer table") for key in entry.latency_ms}
            row["sensitivity"] |= dict(entry.sensitivity)
