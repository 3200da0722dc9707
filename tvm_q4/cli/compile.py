"""``tvm-q4 compile``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import COUNT, IMAGE_SIZE, PATH, hawq_options
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console


@verb(
    "compile",
    example="""
    tvm-q4 compile model.pt2 --target llvm -o model.so
    tvm-q4 compile zoo:resnet18@uniform8 --batch 8 --image-size 224x224 -o resnet18.so
    """,
)
@click.argument("model")
@click.option(
    "--target",
    default="llvm",
    show_default=True,
    help="llvm (this CPU), a TVM target tag, or a JSON object.",
)
@click.option("--batch", type=COUNT, help="Images a run; the model's own where not given.")
@click.option("--image-size", type=IMAGE_SIZE, help="Height and width of the input in pixels.")
@click.option(
    "--tuning-log",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Measured records: a file, or the name of a shipped log.",
)
@click.option("--strict-log", is_flag=True, help="A layer without a record is an error.")
@click.option(
    "--require-integer-only", is_flag=True, help="An operator that stays float is an error."
)
@click.option("--integer-output", is_flag=True, help="Return int32 accumulators, not float logits.")
@click.option("--dump-ir", type=PATH, metavar="DIR", help="Write the module after each phase.")
@hawq_options
@click.option("-o", "--output", type=PATH, required=True, metavar="LIB.so", help="File to write.")
def command(options: Options, *, model: str, output: Path, **arguments: Any) -> None:
    """Compile MODEL (.pt2 file, HAWQ checkpoint, integer recipe, zoo:NAME@CONFIG) to a library."""
    import tvm_q4

    library = tvm_q4.compile(model, output=output, seed=options.seed, **arguments)
    metadata = library.metadata
    result = {
        "path": str(output),
        "bytes": output.stat().st_size,
        "target": metadata["target"],
        "batch": metadata["batch"],
        "memory": metadata["memory"],
        "layers": metadata["layers"],
        "float_ops": metadata["float_ops"],
    }
    options.emit(result, lambda console: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    pairs = Counter(f"W{x['weight_bits']}A{x['activation_bits']}" for x in result["layers"])
    bits = ", ".join(f"{count} {pair}" for pair, count in sorted(pairs.items()))
    megabytes = result["bytes"] / 1e6
    console.print(f"{result['path']}: {megabytes:.2f} MB, batch {result['batch']}, layers: {bits}")
    if result["float_ops"]:
        console.print(f"{len(result['float_ops'])} operators stay float; see tvm-q4 inspect")
