"""``tvm-q4 bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import COUNT, PATH
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console


@verb(
    "bench",
    example="""
    tvm-q4 bench model.so
    tvm-q4 bench model.so --layers --threads 1 --json
    """,
)
@click.argument("library", type=PATH)
@click.option("--layers", is_flag=True, help="Time each kernel too.")
@click.option("--warmup", type=click.IntRange(0), default=10, show_default=True, help="Runs first.")
@click.option("--repeats", type=COUNT, default=50, show_default=True, help="Least timed runs.")
@click.option(
    "--min-ms",
    type=click.FloatRange(0),
    default=500.0,
    show_default=True,
    help="Least total time of the timed runs.",
)
@click.option(
    "--quantized", is_flag=True, help="Feed integers: leave out the input's quantization."
)
@click.option("--threads", type=COUNT, help="Threads; all physical cores where not given.")
@click.option(
    "--cuda-graph/--no-cuda-graph",
    default=None,
    help="Replay a CUDA graph, or not; where not given, for batches of at most 8.",
)
def command(options: Options, *, library: Path, **arguments: Any) -> None:
    """Measure the latency of one batch of LIBRARY."""
    import tvm_q4

    result = tvm_q4.bench(library, seed=options.seed, **arguments)
    options.emit(result, lambda console: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    times = ", ".join(f"{p} {result[f'{p}_ms']:.3f}" for p in ("p10", "p90", "p99"))
    console.print(
        f"median {result['median_ms']:.3f} ms ({times}); batch {result['batch']}, "
        f"{_where(result)}, {result['n']} runs, {result['images_per_second']:.0f} images/s"
    )
    if not result["layers"]:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("layer", "bits", "kernel"):
        table.add_column(name)
    for name in ("ms", "share"):
        table.add_column(name, justify="right")
    for row in result["layers"]:
        share = f"{row['share']:.1%}"
        table.add_row(row["layer"], row["bits"] or "", row["kernel"], f"{row['ms']:.4f}", share)
    console.print(table)


def _where(result: dict[str, Any]) -> str:
    if result["device"] == "cpu":
        return f"threads {result['threads']}"
    return f"{result['device']}, {'one CUDA graph' if result['cuda_graph'] else 'single launches'}"
