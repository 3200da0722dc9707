"""``tvm-q4 sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import COUNT, PATH
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console

_MOST_MOVED = 5


@verb(
    "sensitivity",
    example="""
    tvm-q4 sensitivity float.pt2 --data train.npz -o sensitivity.json
    tvm-q4 sensitivity float.pt2 --data train.npz --metric fisher --activations -o fisher.json
    tvm-q4 plan --table sensitivity.json --table latency.json --limit size=0.5 -o bits.json
    """,
)
@click.argument("model")
@click.option(
    "--data", type=PATH, required=True, metavar="DATA", help="Images, labelled if need be."
)
@click.option(
    "--metric",
    type=click.Choice(["hessian", "output-mse", "fisher"]),
    default="hessian",
    show_default=True,
    help="Hessian trace, or diagonal Fisher information, times squared error; or the squared error"
    " of the layer's output.",
)
@click.option(
    "--activations", is_flag=True, help="Count the error of a layer's quantized input too."
)
@click.option(
    "--labels",
    type=click.Choice(["data", "model"]),
    default="data",
    show_default=True,
    help="Whose classes the loss is taken for; model: those that it predicts.",
)
@click.option("--images", type=COUNT, default=512, show_default=True, help="How many of them.")
@click.option("--batch-size", type=COUNT, default=32, show_default=True, help="Images a step.")
@click.option(
    "--estimator",
    type=click.Choice(["gauss-newton", "hessian-vector"]),
    default="gauss-newton",
    show_default=True,
    help="Hessian: one backward pass for all layers, or a Hessian-vector product for each. With"
    " ReLUs they estimate the same trace; the second takes some fifty times longer.",
)
@click.option(
    "--probes", type=COUNT, default=100, show_default=True,
    help="Hessian: the most random vectors for each batch.",
)  # fmt: skip
@click.option(
    "--tolerance", type=float, default=0.1, show_default=True,
    help="Hessian: relative standard error of every trace that is small enough.",
)  # fmt: skip
@click.option(
    "--transform",
    metavar="NAME",
    help="For images: imagenet, cifar10 or JSON; else the one that the model states.",
)
@click.option("--classes", type=PATH, metavar="FILE", help="Class names in order, one a line.")
@click.option(
    "--workdir",
    type=PATH,
    metavar="DIR",
    help="Folder of the checkpoint, from which the same command goes on; else beside the table.",
)
@click.option("-o", "--output", type=PATH, metavar="TABLE.json", help="Layer table to write.")
def command(options: Options, *, model: str, data: Path, **arguments: Any) -> None:
    """Tell how much each layer of MODEL, a float .pt2 file or zoo:NAME, suffers from fewer bits."""
    import tvm_q4

    table = tvm_q4.sensitivity(model, data, seed=options.seed, **arguments)
    options.emit(table, lambda console: _show(console, table, arguments["output"]))


def _show(console: Console, table: dict[str, Any], output: Path | None) -> None:
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0))
    grid.add_column("layer")
    for name in ("params", "at 4", "W4A8", "at 8", "standard error at 4"):
        grid.add_column(name, justify="right")
    for row in table["layers"]:
        values, errors = row["sensitivity"], row["standard_error"]
        four, mixed, eight = (f"{values[k]:.4g}" if k in values else "" for k in ("4", "w4a8", "8"))
        error = f"{errors['4']:.2g}" if "4" in errors else "stays at 8"
        grid.add_row(row["name"], f"{row['params']:,}", four, mixed, eight, error)
    console.print(grid)
    for names in table["tied"]:
        console.print(f"read one tensor: {', '.join(names)}", soft_wrap=True)
    if "activations" in table:
        _show_effect(console, table["activations"])
    details = table["details"]
    text = f"{table['network']}: {table['metric']}, {details['images']} images"
    if "probes" in details:
        within = "within" if details["within_tolerance"] else "NOT within"
        text += f", {details['probes']} probes, {within} tolerance {details['tolerance']:g}"
    where = f"; written to {output}" if output is not None else ""
    console.print(f"{text}{where}", soft_wrap=True)


def _show_effect(console: Console, effect: dict[str, Any]) -> None:
    """Say which layers rank elsewhere because activations count."""
    moved, found = effect["moved"], effect["spearman"]
    correlation = "none" if found is None else f"{found:.2f}"
    text = f"order with and without activations: Spearman's correlation {correlation}"
    for layer in moved[:_MOST_MOVED]:
        before, after = layer["weights_only"], layer["with_activations"]
        text += f"; {layer['name']} from place {before:g} to {after:g}"
    more = len(moved) - _MOST_MOVED
    console.print(text + (f"; {more} more move" if more > 0 else ""), soft_wrap=True)
