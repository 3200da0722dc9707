"""The latency half of a layer table: each layer's time at 8 and at 4 bits, from a log or predicted.

A measured time is the least of a record's samples, as tuning compares them: what other processes
add is not the layer's. A sum of layers says too much for mixed precision: where neighbours differ
in bits, a tensor is requantized once more, and kernels do not run alone. `plan` optimises the sum
all the same; `compare` measures whole networks.
"""

from __future__ import annotations

import json
import logging
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.target import Target

from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import InputError, TargetError
from tvm_q4.meta import model_meta
from tvm_q4.relay_passes.lower_to_tir import LoweredCall
from tvm_q4.relay_passes.pipeline import to_fused, to_integer, to_kernels
from tvm_q4.targets import as_target, target_arch
from tvm_q4.tuning_logs.records import Record, best_records
from tvm_q4.variants import Variant, variants

FORMAT, VERSION = "tvm-q4/layer-table", 1
_NOMINAL_MHZ = 3000.0
"""Cycles of a microsecond where no record tells how fast a CPU is."""

_SHIFTS = re.compile(r"\bhigh\d+(,\d+)*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Timed:
    """A layer at one precision."""

    params: int
    macs: int
    ms: float
    source: str


def latency(
    model: str | Path,
    *,
    target: str | Target | CudaTarget = "llvm",
    log: Sequence[str | Path] = (),
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    quantized: Mapping[int, str | Path | tvm.IRModule] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Times of a network's layers at 8 and at 4 bits, as a layer table.

    Parameters
    ----------
    model : str or Path
        A float model: ``zoo:NAME``, or a ``.pt2`` file, which is quantized with random images
        (times depend on shapes and bits, not on scales).
    target : str, tvm.target.Target or CudaTarget
        As for `tvm_q4.compile`; one arch.
    log : sequence of paths
        Tuning logs.
    batch, image_size
        As for `tvm_q4.load_model`.
    quantized : mapping of int to path or module, optional
        The model at 8 or at 4 bits as it is deployed, to take in place of one made here.
    seed : int
    output : path, optional
        File for the table.

    Returns
    -------
    dict
        A layer table: ``format``, ``version``, ``network``, ``batch``, ``target``, and ``layers``
        with ``name``, ``params``, ``macs`` (of one image), ``latency_ms`` and ``source`` by bits.
        A source is "measured", "measured, like kernel" (a record of a kernel that differs in
        shift amounts only), or "predicted".

    Raises
    ------
    InputError
        If the model is quantized, or the two models do not have the same layers.
    TargetError
        If the target has kernels of several families.
    """
    resolved = as_target(target)
    found = variants(resolved)
    if len(found) > 1:
        msg = f"{resolved} has kernels of {len(found)} families; a layer table needs one arch"
        raise TargetError(f"{msg}, such as cuda:sm_{found[0].family}")
    records = best_records(log, target_arch(found[0].target))
    modules = _modules(model, dict(quantized or {}), batch, image_size, seed)
    calls = {bits: _calls(mod, found[0], records) for bits, mod in modules.items()}
    scale = _us_of_prediction([*calls[4], *calls[8]], found[0].target, records)
    timed = {
        bits: {c.layer.name: _time(c, found[0].target, records, scale) for c in some}
        for bits, some in calls.items()
    }
    table = {
        "format": FORMAT,
        "version": VERSION,
        "network": model_meta(modules[8]).get("name", str(model)).partition("@")[0],
        "batch": int(modules[8]["main"].params[0].ty.shape[0]),
        "target": str(target),
        "layers": _rows(timed),
    }
    if output is not None:
        _write(table, Path(output))
    return table


def _modules(
    model: str | Path,
    given: dict[int, str | Path | tvm.IRModule],
    batch: int | None,
    image_size: tuple[int, int] | None,
    seed: int,
) -> dict[int, tvm.IRModule]:
    """The model at 8 and at 4 bits, of the integer stage."""
    from tvm_q4.frontend import load_model

    unknown = set(given) - {4, 8}
    if unknown:
        raise InputError(f"there are models of 4 and of 8 bits, not of {min(unknown)}")
    options: dict[str, Any] = {"batch": batch, "image_size": image_size}
    out = {}
    for bits, source in given.items():
        if not isinstance(source, tvm.IRModule):
            source = load_model(source, require_quantized=True, seed=seed, **options)
        out[bits] = to_integer(source)
    if len(out) < 2:
        from tvm_q4.quantize import quantize_at_random

        for bits in {4, 8} - set(out):
            out[bits] = to_integer(quantize_at_random(model, bits, seed=seed, **options))
    return out


def _calls(mod: tvm.IRModule, variant: Variant, records: dict[str, Record]) -> list[LoweredCall]:
    """The layers of a module with the parameters that compile would choose."""
    lowered = to_kernels(to_fused(mod), variant.target, variant.rules, records.get)
    return [c for c in lowered.calls if c.layer.kind in ("conv2d", "dense")]


def _time(call: LoweredCall, target: Target, records: dict[str, Record], scale: float) -> _Timed:
    """A layer's time; `scale` is the microseconds of a unit of predicted cost."""
    record = _record(call, records)
    weight = call.layer.ops[0].params["weight"]
    pixels = call.layer.shape[2] * call.layer.shape[3]
    if record is None:
        us, source = _predicted(call, target) * scale, "predicted"
    else:
        exact = record.signature == call.signature
        us, source = record.least_us, "measured" if exact else "measured, like kernel"
    return _Timed(weight.size, weight.size * pixels, us / 1e3, source)


def _record(call: LoweredCall, records: dict[str, Record]) -> Record | None:
    """The record of a layer's kernel, or of one that differs in the amounts of shifts only."""
    if call.signature in records:
        return records[call.signature]
    kind = _SHIFTS.sub("high", call.signature)
    alike = (r for s, r in records.items() if _SHIFTS.sub("high", s) == kind)
    return min(alike, key=lambda r: r.least_us, default=None)


def _predicted(call: LoweredCall, target: Target) -> float:
    return call.choice.rule.predict(call.layer, target, call.choice.params)


def _us_of_prediction(
    calls: Sequence[LoweredCall], target: Target, records: dict[str, Record]
) -> float:
    """Microseconds of a unit of predicted cost: on CPUs those are cycles, of unknown length."""
    if target.kind.name == "cuda":
        return 1.0
    ratios = [
        records[c.signature].least_us / _predicted(c, target)
        for c in calls
        if c.signature in records
    ]
    if ratios:
        return statistics.median(ratios)
    logger.warning(
        "no layer is in the log; predicted times assume one core at %.0f MHz", _NOMINAL_MHZ
    )
    return 1 / _NOMINAL_MHZ


def _rows(timed: dict[int, dict[str, _Timed]]) -> list[dict[str, Any]]:
    eight, four = timed[8], timed[4]
    different = set(eight) ^ set(four)
    if different:
        name = min(different)
        raise InputError(
            f"layer {name!r} is in one of the models of 4 and 8 bits only; give the same network"
        )
    return [
        {
            "name": name,
            "params": eight[name].params,
            "macs": eight[name].macs,
            "latency_ms": {"4": four[name].ms, "8": eight[name].ms},
            "source": {"4": four[name].source, "8": eight[name].source},
        }
        for name in eight
    ]


def _write(table: dict[str, Any], path: Path) -> None:
    """Write through a temporary name, so that nobody reads half a table."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise InputError(f"table '{path}' cannot be written: {error.strerror}") from None
