"""Reports as `compare` makes them, without anything compiled or measured."""

from __future__ import annotations

from typing import Any

from tvm_q4.comparing import summary

LAYERS = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "fc")


def latency(ms: float, **changes: Any) -> dict[str, Any]:
    """A measured latency."""
    entry = {
        "median_ms": ms, "p10_ms": ms * 0.9, "p90_ms": ms * 1.2, "images_per_second": 1e3 / ms,
        "n": 70, "rounds_ms": [ms, ms * 1.01], "source": "measured", "device": "A CPU",
        "threads": 1, "timer": "wall clock", "cuda_graph": False,
    }  # fmt: skip
    return entry | changes


def accuracy(correct: int, n: int = 1000) -> dict[str, Any]:
    """An accuracy of so many images."""
    counts = {"top1": correct / n, "top5": 1.0, "n": n, "correct": correct}
    return summary.accuracy_entry(counts | {"how": "the compiled library"})


def layer(name: str, weight: int, activation: int, params: int = 1000) -> dict[str, Any]:
    """A layer in the words of a library's metadata."""
    bits = {"weight_bits": weight, "activation_bits": activation}
    macs = params * 10
    return {
        "name": name, **bits, "params": params, "macs": macs, "bops": macs * weight * activation,
    }  # fmt: skip


def row(name: str, bits: int, ms: float, correct: int | None, **changes: Any) -> dict[str, Any]:
    """A config whose layers are all of `bits`, before ratios and fronts are added."""
    layers = [layer(n, bits, bits) for n in LAYERS]
    return {
        "name": name, "spec": name, "kind": "preset", "how": "post-training", "bit_exact": True,
        "latency": latency(ms), "kernels": {"measured": 3, "predicted": 1},
        "accuracy": None if correct is None else accuracy(correct),
        **summary.sizes(layers, None), "library_bytes": 10_000 * bits, "library": "work/x.so",
        "notes": [],
    } | changes  # fmt: skip


def report(rows: list[dict[str, Any]], layer_names: tuple[str, ...] = LAYERS) -> dict[str, Any]:
    """A whole report of those rows."""
    baseline = summary.find_baseline(rows)
    summary.add_ratios(rows, baseline)
    summary.add_fronts(rows)
    quantized = [r for r in rows if r["kind"] != "float"]
    layers = [
        {
            "name": name, "params": 1000, "macs": 10_000,
            "bits": {r["name"]: next(iter(r["bits"])) for r in quantized},
            "latency_ms": {"8": 0.2 + i / 10, "4": 0.1}, "source": {"8": "measured", "4": "log"},
            "sensitivity": {"8": 1e-4, "4": 0.1 * (i + 1)},
        }
        for i, name in enumerate(layer_names)
    ]  # fmt: skip
    return {
        "format": "tvm-q4/comparison", "version": 1,
        "ok": all(r["bit_exact"] is not False for r in rows), "model": "float.pt2",
        "target": "llvm", "batch": 1, "input": [1, 3, 32, 32],
        "date": "2026-11-21T19:00:00+00:00", "seed": 0, "rounds": 2, "command": "tvm-q4 compare",
        "machine": {"cpu": "A CPU", "cpus": 2, "threads": 1, "system": "Linux", "python": "3.11"},
        "versions": {"tvm-q4": "0.1.0"},
        "inputs": {"calibrate": None, "samples": None, "data": None, "log": [], "table": []},
        "baseline": baseline, "configs": rows, "layers": layers, "report": "report.json",
        "page": "report.html",
    }  # fmt: skip


def three() -> dict[str, Any]:
    """A report of two presets and the float model."""
    rows = [row("uniform8", 8, 2.0, 900), row("uniform4", 4, 1.0, 850)]
    float_facts: dict[str, Any] = {"kind": "float", "latency": None, "library_bytes": None}
    return report([*rows, row("float", 32, 1.0, 910, bit_exact=None, **float_facts)])
