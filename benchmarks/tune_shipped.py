"""Tune the shipped logs' networks on this CPU, and tell what tuning gained over the prediction.

    python benchmarks/tune_shipped.py --minutes 120 --report tuned.json

Tunes ResNet-18, 34 and 50 and the shipped ResNet-20 at batch 1 and 8, uniform8 and uniform4, into
``tuning_logs/CPU.jsonl``. The minutes are shared by the networks' predicted times; a network that
is finished leaves its share to the others. A run that was ended goes on where it stopped. Then each
network is compiled with and without the log, and both libraries are timed in turn. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "examples" / "models"
NETWORKS = ("resnet20", "resnet18", "resnet34", "resnet50")
_WEIGHT = {"resnet20": 1.0, "resnet18": 4.0, "resnet34": 6.0, "resnet50": 10.0}
"""Shares of the time: networks have about as many more distinct layers of as much more work."""


def main(arguments: list[str] | None = None) -> int:
    """Run the script; see the module's docstring."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        os.environ["TVM_NUM_THREADS"] = str(options.threads)  # read once, when TVM loads
    log = options.log or ROOT / "tuning_logs" / f"{_cpu()}.jsonl"
    cases = [
        (network, config, batch)
        for network in options.networks
        for config in options.configs
        for batch in options.batches
    ]
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * options.minutes
    for number, (network, config, batch) in enumerate(cases):
        if options.time_only:
            rows.append({"network": network, "config": config, "batch": batch})
            continue
        left = sum(_WEIGHT[name] for name, _, _ in cases[number:])
        minutes = max(0.1, (end - time.monotonic()) / 60 * _WEIGHT[network] / left)
        row = {"network": network, "config": config, "batch": batch}
        row |= tune(model_of(network, config), batch, log, minutes, options)
        rows.append(row)
        print(
            f"{network} {config} batch {batch}: {row['measured']} candidates, tuned layers "
            f"{row['start_us']} us to {row['best_us']} us",
            flush=True,
        )
        _write(options.report, log, rows)
    if options.tune_only:
        return 0
    print(f"\n{HEADER}\n{RULE}")
    for row in rows:
        row["whole"] = gain(model_of(row["network"], row["config"]), row["batch"], log, options)
        print(table_row(row), flush=True)
        _write(options.report, log, rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0, help="of tuning, all together")
    parser.add_argument("--networks", type=_names, default=list(NETWORKS))
    parser.add_argument("--configs", type=_names, default=["uniform8", "uniform4"])
    parser.add_argument("--batches", type=lambda t: [int(n) for n in _names(t)], default=[1, 8])
    parser.add_argument("--early-stop", type=int, default=24)
    parser.add_argument(
        "--trials", type=int, help="of a network; few only measure the best of --log again"
    )
    parser.add_argument("--time-only", action="store_true", help="time whole networks only")
    parser.add_argument("--tune-only", action="store_true", help="do not time whole networks")
    parser.add_argument("--threads", type=int, help="all physical cores where not given")
    parser.add_argument("--log", type=Path, help="tuning_logs/CPU.jsonl where not given")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each library")
    parser.add_argument("--report", type=Path, help="file for what was found")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _cpu() -> str:
    from tvm_q4.targets import cpu_target, target_arch

    return target_arch(cpu_target())


def model_of(network: str, config: str) -> str:
    """The MODEL argument of a network at a uniform precision."""
    if network == "resnet20":
        return str(SHIPPED / f"resnet20_{ {'uniform8': 'w8a8', 'uniform4': 'w4a4'}[config] }.pt2")
    return f"zoo:{network}@{config}"


def tune(
    model: str, batch: int, log: Path, minutes: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Tune one network; what `tvm_q4.tune_model` says of it."""
    import tvm_q4

    return tvm_q4.tune_model(
        model,
        batch=batch,
        log=log,
        minutes=minutes,
        trials=options.trials,
        early_stop=options.early_stop,
        threads=options.threads,
    )


def gain(model: str, batch: int, log: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time of the whole network with predicted and with measured parameters, in turn."""
    from paired_timing import median_ms, ratio, time_in_turn

    with tempfile.TemporaryDirectory(prefix="tune_shipped_") as folder:
        calls = {
            "predicted": _call(model, batch, (), Path(folder) / "predicted.so"),
            "tuned": _call(model, batch, (log,), Path(folder) / "tuned.so"),
        }
        rounds = time_in_turn(calls, options.rounds)
    found = ratio(rounds["tuned"], rounds["predicted"])
    return {
        "predicted_ms": median_ms(rounds["predicted"]),
        "tuned_ms": median_ms(rounds["tuned"]),
        "ratio": {"median": found.median, "low": found.low, "high": found.high},
    }


def _call(model: str, batch: int, logs: tuple[Path, ...], path: Path) -> Callable[[], object]:
    """Compile a network; a function of no arguments that runs the library."""
    import numpy as np

    import tvm_q4
    from tvm_q4.sample_input import sample_input

    library = tvm_q4.compile(model, batch=batch, tuning_log=logs, output=path)
    x = sample_input(library.metadata, batch, dtype="float32")
    logits = np.empty_like(library.run(x))
    return lambda: library.run(x, out=logits)


HEADER = (
    "| network | config | batch | layers us: predicted | tuned | ratio | network ms: predicted "
    "| tuned | tuned / predicted (range) |"
)
RULE = "|---|---|---|---|---|---|---|---|---|"


def table_row(row: dict[str, Any]) -> str:
    """Markdown row of one network: its tuned layers summed up, and the whole of it."""
    start, best, whole = row.get("start_us"), row.get("best_us"), row["whole"]
    layers = [f"{start:.0f}", f"{best:.0f}", f"{best / start:.3f}"] if best else ["-", "-", "-"]
    spread = whole["ratio"]
    cells = [
        row["network"], row["config"], str(row["batch"]), *layers,
        f"{whole['predicted_ms']:.3f}", f"{whole['tuned_ms']:.3f}",
        f"{spread['median']:.3f} ({spread['low']:.3f}..{spread['high']:.3f})",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _write(report: Path | None, log: Path, rows: list[dict[str, Any]]) -> None:
    """Write what is known so far; names of logs only, no path of this machine."""
    if report is not None:
        plain = [row | {"log": log.name} for row in rows]
        report.write_text(json.dumps({"cpu": _cpu(), "cases": plain}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
