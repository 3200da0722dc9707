"""Accuracy of compiled libraries of a network that was quantized after training, by method.

    python benchmarks/quantize_table.py resnet20.pt2 --calibrate train.npz --data test.npz

Each row quantizes the float model, compiles it for this CPU and evaluates the library; it prints a
Markdown table. See examples/quantize/README.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tvm_q4
from tvm_q4.quantize.workflow import quantize_model

_SCALES: dict[str, Any] = {"bias_correction": False}
METHODS: dict[str, dict[str, Any]] = {
    "minmax": {**_SCALES, "weight_observer": "minmax", "activation_observer": "minmax"},
    "percentile": {**_SCALES, "activation_observer": "percentile"},
    "mse": _SCALES,
    "mse, equalization": {**_SCALES, "equalize": True},
    "mse, bias correction": {},
    "mse, bias correction, AdaRound": {"rounding": "adaround"},
    "all": {"equalize": "auto", "rounding": "adaround"},
}
"""Arguments of `quantize_ptq` by name."""
_BATCH = 50


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parser().parse_args(arguments)
    print("| bits | method | top-1 | right | of | quantize s |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    rows = []
    for row in table(options):
        rows.append(row)
        top1, seconds = f"{100 * row['top1']:.2f} %", f"{row['seconds']:.0f}"
        cells = (row["config"], row["method"], top1, str(row["correct"]), str(row["n"]), seconds)
        print(f"| {' | '.join(cells)} |", flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a float .pt2 file")
    parser.add_argument("--calibrate", required=True, help="images: a DATA argument")
    parser.add_argument("--data", required=True, help="labelled test images: a DATA argument")
    parser.add_argument("--samples", type=int, default=512, help="calibration images")
    parser.add_argument(
        "--configs", type=_names, default=["uniform8", "w4a8", "uniform4"], help="with ; between"
    )
    parser.add_argument("--methods", type=_names, default=list(METHODS), help="; ".join(METHODS))
    parser.add_argument("--residual-bits", type=int, default=8, help="4, 8 or 16")
    parser.add_argument("--limit", type=int, help="only the first so many test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the rows")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(";") if name]


def table(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each config and method: arguments, accuracy, seconds of quantizing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        for config in options.configs:
            for method in options.methods:
                result = quantize_model(
                    options.model, path, config=config, calibrate=options.calibrate,
                    samples=options.samples, residual_bits=options.residual_bits,
                    post_training=METHODS[method], seed=options.seed,
                )  # fmt: skip
                assert result is not None
                library = tvm_q4.compile(path, batch=_BATCH, require_integer_only=True)
                report = tvm_q4.evaluate(library, options.data, limit=options.limit)
                row = {key: report[key] for key in ("top1", "correct", "n")}
                yield {"method": method, "config": config, **row, "seconds": result["seconds"]}


if __name__ == "__main__":
    raise SystemExit(main())
