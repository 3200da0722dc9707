"""The report: a row a config and a row a layer, and what it is all of."""

from __future__ import annotations

import logging
import os
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tvm_q4.benchmark import thread_count
from tvm_q4.comparing import summary
from tvm_q4.comparing.build import Builder, Built
from tvm_q4.comparing.configs import FLOAT, Config
from tvm_q4.comparing.layers import layer_rows
from tvm_q4.comparing.measure import Rounds, latency_entry, predicted_entry
from tvm_q4.comparing.settings import Settings
from tvm_q4.layer_table import LayerTable
from tvm_q4.library.host import cpu_name

FORMAT, VERSION = "tvm-q4/comparison", 1
PACKAGES = ("tvm-q4", "apache-tvm", "apache-tvm-ffi", "numpy", "torch", "torchao", "matplotlib")
logger = logging.getLogger(__name__)


def make_report(
    settings: Settings,
    configs: Sequence[Config],
    built: Sequence[Built],
    builder: Builder,
    source: Any,
    times: Rounds,
    table: LayerTable | None,
    folder: Path,
) -> dict[str, Any]:
    """What ``report.json`` holds; see `tvm_q4.compare`.

    Parameters
    ----------
    settings : Settings
    configs : sequence of Config
        In the order of the report's rows.
    built : sequence of Built
        Those that are not float.
    builder : Builder
        Evaluates the float model.
    source : FloatModel or None
        The float model, where a config needs it.
    times : mapping
        What `measure` found of the libraries that run here.
    table : LayerTable, optional
    folder : Path
        Where the report will be.
    """
    libraries = {one.config.name: one for one in built}
    rows, layers_of = [], {}
    for config in configs:
        if config.kind == FLOAT:
            row, layers = _float_row(config, settings, builder, source)
        else:
            one = libraries[config.name]
            row, layers = _row(one, times.get(config.name), settings, folder)
            layers_of[config.name] = layers
        rows.append(row)
    baseline = summary.find_baseline(rows)
    summary.add_ratios(rows, baseline)
    summary.add_fronts(rows)
    specs = [f"{config.name}={config.spec}" for config in configs]
    return {
        "format": FORMAT,
        "version": VERSION,
        "ok": all(row["bit_exact"] is not False for row in rows),
        "model": settings.model,
        "target": settings.target_text,
        "batch": built[0].library.input.batch if built else settings.batch,
        "input": list(built[0].library.input.shape) if built else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": settings.seed,
        "rounds": settings.rounds,
        "command": settings.command(specs, folder),
        "machine": _machine(),
        "versions": _versions(),
        "inputs": {
            "calibrate": settings.calibrate,
            "samples": settings.samples if settings.calibrate else None,
            "data": settings.data,
            "log": list(settings.log),
            "table": list(settings.table),
        },
        "baseline": baseline,
        "configs": rows,
        "layers": layer_rows(layers_of, built, table, settings.seed),
        "report": str(folder / "report.json"),
        "page": str(folder / "report.html"),
    }


def _row(
    one: Built, rounds: Any, settings: Settings, folder: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    metadata, verified = one.library.metadata, one.verified
    layers: list[dict[str, Any]] = metadata["layers"]
    latency = (
        latency_entry(one.library, rounds)
        if rounds is not None
        else predicted_entry(one.library, settings.log)
    )
    if verified is not None and not verified["bit_exact"]:
        where = (verified["first_mismatch"] or {}).get("name", "output")
        one.notes.append(f"NOT bit-exact with the reference, first at '{where}'")
        logger.warning("config '%s' is not bit-exact, first at '%s'", one.config.name, where)
    if latency is None:
        one.notes.append("no latency: predictions for CPUs only rank, and the CPU is another one")
    if metadata["float_ops"]:
        one.notes.append(f"{len(metadata['float_ops'])} operators stay float")
    row = {
        **_head(one.config, one.how),
        "bit_exact": None if verified is None else verified["bit_exact"],
        "latency": latency,
        "kernels": dict(Counter(layer["source"] for layer in layers)),
        "accuracy": None if one.accuracy is None else summary.accuracy_entry(one.accuracy),
        **summary.sizes(layers, metadata["memory"]["weight_bytes"]),
        "library_bytes": one.bytes,
        "library": str(one.library.path.relative_to(folder)),
        "notes": one.notes,
    }
    return row, layers


def _float_row(
    config: Config, settings: Settings, builder: Builder, source: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from tvm_q4.comparing.float_model import float_layers

    layers = float_layers(source, settings.image_size)
    notes, accuracy = ["not compiled, so without latency"], None
    size = source.input.shape[2:]
    if settings.data is not None and not settings.random_calibration:
        if settings.image_size in (None, size):
            accuracy = builder.float_accuracy(source)
        else:
            notes.append(f"no accuracy: the program takes images of {size[0]}x{size[1]} only")
    row = {
        **_head(config, "the float model"),
        "bit_exact": None,
        "latency": None,
        "kernels": {},
        "accuracy": None if accuracy is None else summary.accuracy_entry(accuracy),
        **summary.sizes(layers, None),
        "library_bytes": None,
        "library": None,
        "notes": notes,
    }
    return row, layers


def _head(config: Config, how: str) -> dict[str, Any]:
    return {"name": config.name, "spec": config.spec, "kind": config.kind, "how": how}


def _machine() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": thread_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
