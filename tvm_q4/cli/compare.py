"""``tvm-q4 compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import COUNT, IMAGE_SIZE, PATH
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console


@verb(
    "compare",
    example="""
    tvm-q4 compare float.pt2 --config uniform8 --config uniform4 --config plan.json \\
      --calibrate train.npz --data test.npz -o report
    tvm-q4 compare float.pt2 --config float --config uniform8=w8.pt2 --config w4.pt2 -o report
    """,
)
@click.argument("model")
@click.option(
    "--config",
    "configs",
    multiple=True,
    required=True,
    metavar="[NAME=]CONFIG",
    help="uniform8, uniform4, w4a8, a bit config, a quantized model, or float; repeatable.",
)
@click.option("--target", default="llvm", show_default=True, help="As for compile.")
@click.option("--calibrate", type=PATH, metavar="DATA", help="Typical images, for quantization.")
@click.option("--samples", type=COUNT, default=512, show_default=True, help="How many of them.")
@click.option("--data", type=PATH, metavar="DATA", help="Labelled images, for accuracy.")
@click.option("--transform", metavar="NAME", help="For images: imagenet, cifar10 or JSON.")
@click.option("--classes", type=PATH, metavar="FILE", help="Class names in order, one a line.")
@click.option("--log", type=PATH, multiple=True, metavar="FILE", help="Tuning log; repeatable.")
@click.option("--table", type=PATH, multiple=True, metavar="FILE", help="Layer table; repeatable.")
@click.option("--batch", type=COUNT, help="Images a run; the model's own where not given.")
@click.option("--image-size", type=IMAGE_SIZE, help="Height and width of the input in pixels.")
@click.option("--rounds", type=COUNT, default=7, show_default=True, help="Turns of each library.")
@click.option(
    "--seconds", type=click.FloatRange(0), default=0.25, show_default=True, help="Length of a turn."
)
@click.option("--threads", type=COUNT, help="Threads; all physical cores where not given.")
@click.option(
    "-o", "--output", type=PATH, required=True, metavar="DIR", help="Folder of the report."
)
def command(options: Options, *, model: str, **arguments: Any) -> None:
    """Compare configs of MODEL: latency, accuracy, size and bit operations, whole and by layer.

    Writes report.json and report.html, and keeps what it made in DIR/work to go on from there.
    """
    import tvm_q4
    from tvm_q4.errors import CheckFailed

    report = tvm_q4.compare(model, seed=options.seed, **arguments)
    options.emit(report, lambda console: _show(console, report))
    if not report["ok"]:
        failed = [row["name"] for row in report["configs"] if row["bit_exact"] is False]
        raise CheckFailed(f"not bit-exact with the reference: {', '.join(failed)}")


def _show(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table

    from tvm_q4.comparing.text import DASH, bytes_text, spread_text, verified_text

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("config")
    for name in ("top-1", "±", "ms", "ratio", "weights", "GBOPs"):
        table.add_column(name, justify="right")
    table.add_column("verified")
    for row in report["configs"]:
        accuracy, latency = row["accuracy"], row["latency"]
        table.add_row(
            row["name"],
            f"{accuracy['top1']:.2%}" if accuracy else DASH,
            f"{accuracy['stderr']:.2%}" if accuracy else "",
            f"{latency['median_ms']:.4g}" if latency else DASH,
            spread_text(row["ratios"].get("latency")),
            bytes_text(row["weight_bytes"]),
            f"{row['bops'] / 1e9:.4g}",
            verified_text(row["bit_exact"]),
        )
    console.print(table)
    for row in report["configs"]:
        for note in row["notes"]:
            console.print(f"{row['name']}: {note}", soft_wrap=True)
    sources = {row["latency"]["source"] for row in report["configs"] if row["latency"]}
    latency_text = f"latency {', '.join(sorted(sources))}, " if sources else ""
    base = f"ratios to {report['baseline']}; " if report["baseline"] else ""
    console.print(
        f"{latency_text}batch {report['batch']}; {base}written to {report['page']}", soft_wrap=True
    )
