"""``tvm-q4 evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tvm_q4.cli.params import COUNT, PATH
from tvm_q4.cli.verb import Options, verb


@verb(
    "evaluate",
    example="""
    tvm-q4 evaluate model.so --data test.npz
    tvm-q4 evaluate model.so --data images --transform imagenet --json
    """,
)
@click.argument("library", type=PATH)
@click.option(
    "--data",
    type=PATH,
    required=True,
    help="An .npz with x and y, a folder with labels.tsv and images/, or class folders.",
)
@click.option(
    "--transform",
    metavar="NAME",
    help="For images: imagenet, cifar10 or JSON; else the one that the library states.",
)
@click.option("--classes", type=PATH, metavar="FILE", help="Class names in order, one a line.")
@click.option("--limit", type=COUNT, help="Only the first so many images.")
def command(options: Options, *, library: Path, data: Path, **arguments: Any) -> None:
    """Measure top-1 and top-5 accuracy of LIBRARY."""
    import tvm_q4

    result = tvm_q4.evaluate(library, data, **arguments)
    text = f"top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%} of {result['n']} images"
    options.emit(result, lambda console: console.print(text))
