"""``tvm-q4 run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import COUNT, PATH
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console


@verb(
    "run",
    example="""
    tvm-q4 run model.so --image cat.jpg
    tvm-q4 run model.so --input x.npy --output y.npy --dump-layers tensors
    """,
)
@click.argument("library", type=PATH)
@click.option(
    "--input",
    "input_file",
    type=PATH,
    metavar="X.npy",
    help="Images [N, C, H, W]: float32, or integers of the quantized input's type.",
)
@click.option("--image", type=PATH, metavar="FILE", help="One image file.")
@click.option(
    "--transform",
    metavar="NAME",
    help="For --image: imagenet, cifar10 or JSON; else the one that the library states.",
)
@click.option("--output", type=PATH, metavar="Y.npy", help="Write the result.")
@click.option("--top", type=COUNT, default=5, show_default=True, help="Classes to print.")
@click.option("--dump-layers", type=PATH, metavar="DIR", help="Write each stored tensor as .npy.")
def command(options: Options, *, library: Path, **arguments: Any) -> None:
    """Run LIBRARY on an array or on an image."""
    import tvm_q4

    result = tvm_q4.run(library, **arguments)
    options.emit(result, lambda console: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    shape = "x".join(str(n) for n in result["shape"])
    console.print(f"result {result['dtype']} {shape}")
    for i, ranking in enumerate(result["top"]):
        words = [f"{_label(entry)} {entry['logit']:.4g}" for entry in ranking]
        console.print(f"image {i}: {', '.join(words)}", soft_wrap=True)
    for what, path in (("result", result["output"]), ("tensors", result["dump_layers"])):
        if path is not None:
            console.print(f"{what} written to {path}", soft_wrap=True)


def _label(entry: dict[str, Any]) -> str:
    index, name = entry["class"], entry["name"]
    return f"{name} ({index})" if name is not None else str(index)
