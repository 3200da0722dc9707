"""``tvm-q4 latency``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import COUNT, IMAGE_SIZE, PATH
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console


@verb(
    "latency",
    example="""
    tvm-q4 latency zoo:resnet18 --target llvm --log cpu.jsonl -o latency.json
    tvm-q4 latency float.pt2 --at8 model8.pt2 --at4 model4.pt2 --log cpu.jsonl -o latency.json
    """,
)
@click.argument("model")
@click.option("--target", default="llvm", show_default=True, help="As for compile; one arch.")
@click.option("--log", type=PATH, multiple=True, metavar="FILE", help="Tuning log with records.")
@click.option("--batch", type=COUNT, help="Images a run; the model's own where not given.")
@click.option("--image-size", type=IMAGE_SIZE, help="Height and width of the input in pixels.")
@click.option("--at8", metavar="MODEL", help="The model at 8 bits; made here where not given.")
@click.option("--at4", metavar="MODEL", help="The model at 4 bits; made here where not given.")
@click.option("-o", "--output", type=PATH, metavar="TABLE.json", help="Layer table to write.")
def command(
    options: Options, *, model: str, at8: str | None, at4: str | None, **arguments: Any
) -> None:
    """Tell each layer's time at 8 and at 4 bits: measured where a log has it, else predicted."""
    import tvm_q4

    quantized = {bits: path for bits, path in ((8, at8), (4, at4)) if path is not None}
    table = tvm_q4.latency(model, quantized=quantized, seed=options.seed, **arguments)
    options.emit(table, lambda console: _show(console, table, arguments["output"]))


def _show(console: Console, table: dict[str, Any], output: Path | None) -> None:
    from rich.table import Table

    rows = Table(box=None, padding=(0, 2, 0, 0))
    rows.add_column("layer")
    for name in ("ms at 8", "ms at 4", "gain"):
        rows.add_column(name, justify="right")
    rows.add_column("source at 8, at 4")
    for layer in table["layers"]:
        eight, four = layer["latency_ms"]["8"], layer["latency_ms"]["4"]
        source = f"{layer['source']['8']}, {layer['source']['4']}"
        rows.add_row(layer["name"], f"{eight:.4f}", f"{four:.4f}", f"{eight / four:.2f}x", source)
    console.print(rows)
    counts = Counter(source for layer in table["layers"] for source in layer["source"].values())
    text = ", ".join(f"{count} {source}" for source, count in counts.most_common())
    where = f"; written to {output}" if output is not None else ""
    console.print(f"{table['network']}, batch {table['batch']}: {text}{where}", soft_wrap=True)
