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
@click.option(
    "--log",
    multiple=True,
    metavar="FILE",
    help="Tuning log, or table of published times; hawq-v3-t4 comes with tvm-q4.",
)
@click.option("--batch", type=COUNT, help="Images a run; the model's own where not given.")
@click.option("--image-size", type=IMAGE_SIZE, help="Height and width of the input in pixels.")
@click.option("--at8", metavar="MODEL", help="The model at 8 bits; made here where not given.")
@click.option("--at4", metavar="MODEL", help="The model at 4 bits; made here where not given.")
@click.option("--arch", metavar="NAME", help="Of HAWQ checkpoints given by --at8 and --at4.")
@click.option(
    "--choices",
    default="4,8",
    show_default=True,
    metavar="LIST",
    help="Precisions, of 4, 8 and w4a8; 4 and 8 are always told.",
)
@click.option("-o", "--output", type=PATH, metavar="TABLE.json", help="Layer table to write.")
def command(
    options: Options,
    *,
    model: str,
    at8: str | None,
    at4: str | None,
    **arguments: Any,
) -> None:
    """Tell each layer's time at 8 and at 4 bits: measured where a log has it, else predicted.

    The table also says what boundaries between layers of different bits cost, which takes networks
    of mixed bits: two for a ResNet, more where paths join, none where --at8 or --at4 gives a model.
    """
    import tvm_q4

    quantized = {bits: path for bits, path in ((8, at8), (4, at4)) if path is not None}
    table = tvm_q4.latency(model, quantized=quantized, seed=options.seed, **arguments)
    options.emit(table, lambda console: _show(console, table, arguments["output"]))


def _show(console: Console, table: dict[str, Any], output: Path | None) -> None:
    from rich.table import Table

    keys = [key for key in ("8", "4", "w4a8") if any(key in r["source"] for r in table["layers"])]
    rows = Table(box=None, padding=(0, 2, 0, 0))
    rows.add_column("layer")
    for name in (*(f"ms at {key}" for key in keys), "gain"):
        rows.add_column(name, justify="right")
    rows.add_column(f"source at {', '.join(keys)}")
    for layer in table["layers"]:
        ms, sources = layer["latency_ms"], dict.fromkeys(layer["source"].values())
        times = [f"{ms[key]:.4f}" if key in ms else "" for key in keys]
        gain = f"{ms['8'] / ms['4']:.2f}x" if ms.get("4") else ""
        rows.add_row(layer["name"], *times, gain, ", ".join(sources))
    console.print(rows)
    boundaries = [ms for b in table.get("boundaries", []) for ms in b["latency_ms"].values()]
    if boundaries:
        low, high = min(boundaries), max(boundaries)
        text = f"{len(boundaries)} boundaries between 8 and 4 bits: {low:+.4f} to {high:+.4f} ms"
        console.print(f"{text} each", soft_wrap=True)
    console.print(f"all else: {table['rest_ms']:.4f} ms, {table['rest_source']}", soft_wrap=True)
    counts = Counter(source for layer in table["layers"] for source in layer["source"].values())
    text = ", ".join(f"{count} {source}" for source, count in counts.most_common())
    where = f"; written to {output}" if output is not None else ""
    console.print(f"{table['network']}, batch {table['batch']}: {text}{where}", soft_wrap=True)
