"""A small layer table, whose plans can be told by hand."""

from __future__ import annotations

from typing import Any


def table(**changes: Any) -> dict[str, Any]:
    """Four layers of 8, 16, 32 and 64 parameters; `changes` replace keys of the table."""
    rows = [
        {
            "name": name,
            "params": params,
            "macs": 10 * params,
            "sensitivity": {"8": 0.5, "4": 0.5 + gain, "w4a8": 0.5 + gain / 2},
            "latency_ms": {"8": 2.0 * ms, "4": 1.0 * ms, "w4a8": 1.5 * ms},
        }
        for name, params, gain, ms in (
            ("conv1", 8, 4.0, 0.25),
            ("conv2", 16, 2.0, 0.5),
            ("conv3", 32, 1.0, 1.0),
            ("fc", 64, 8.0, 0.125),
        )
    ]
    data = {
        "format": "tvm-q4/layer-table",
        "version": 1,
        "network": "net",
        "batch": 1,
        "target": "llvm",
        "layers": rows,
        "tied": [],
    }
    return data | changes


def row(data: dict[str, Any], name: str) -> dict[str, Any]:
    """A layer of a table."""
    return next(r for r in data["layers"] if r["name"] == name)


def fixed(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The table with a layer that stays at 8 and has no other values."""
    found = row(data, name)
    found |= {"fixed": 8}
    for key in ("sensitivity", "latency_ms"):
        found[key] = {"8": found[key]["8"]}
    return data
