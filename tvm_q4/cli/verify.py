"""``tvm-q4 verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import PATH, hawq_options
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console

_MODELS = {"framework": "model", "onnxruntime": "onnxruntime"}
"""What stands before ``_equal`` in the report's keys, and its name in the table."""


@verb(
    "verify",
    example="""
    tvm-q4 verify model.so model.pt2
    tvm-q4 verify model.so model.pt2 --input x.npy --first-mismatch
    tvm-q4 verify model.so model.onnx --onnxruntime
    """,
)
@click.argument("library", type=PATH)
@click.argument("model")
@click.option(
    "--input",
    "input_file",
    type=PATH,
    metavar="X.npy",
    help="Images [N, C, H, W]; random ones where not given.",
)
@hawq_options
@click.option("--first-mismatch", is_flag=True, help="Stop at the first tensor that differs.")
@click.option("--onnxruntime", is_flag=True, help="Run MODEL.onnx in onnxruntime too.")
def command(
    options: Options,
    *,
    library: Path,
    model: str,
    input_file: Path | None,
    first_mismatch: bool,
    onnxruntime: bool,
    **hawq: Any,
) -> None:
    """Compare LIBRARY with the reference executor on MODEL, tensor by tensor, bit for bit.

    Exits with 1 where an integer differs.
    """
    import tvm_q4
    from tvm_q4.errors import CheckFailed
    from tvm_q4.inference import read_array

    x = None if input_file is None else read_array(input_file)
    report = tvm_q4.verify(
        library,
        model,
        x,
        first_mismatch=first_mismatch,
        onnxruntime=onnxruntime,
        seed=options.seed,
        **hawq,
    )
    options.emit(report, lambda console: _show(console, report))
    if not report["bit_exact"]:
        raise CheckFailed(_mismatch(report))


def _mismatch(report: dict[str, Any]) -> str:
    first = report["first_mismatch"]
    if first is None:
        return "the library is not bit-exact: its result differs from the reference"
    return (
        f"the library is not bit-exact: '{first['name']}' at {first['index']} is "
        f"{first['found']}, the reference has {first['expected']}"
    )


def _show(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table

    models = [key for key in _MODELS if any(f"{key}_equal" in layer for layer in report["layers"])]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("tensor")
    table.add_column("kind")
    for name in ("equal", *(f"equal to {_MODELS[key]}" for key in models)):
        table.add_column(name, justify="right")
        table.add_column("max step", justify="right")
    for layer in report["layers"]:
        own = _agreement(layer, "") if layer["checked"] else ("in registers", "")
        others = [text for key in models for text in _agreement(layer, f"{key}_")]
        table.add_row(layer["name"], layer["kind"], *own, *others)
    console.print(table)
    checked = [layer for layer in report["layers"] if layer["checked"]]
    verdict = "bit-exact" if report["bit_exact"] else "NOT bit-exact"
    text = f"{verdict}: {len(checked)} tensors of {report['n']} images"
    if report["top1_agreement"] is not None:
        share = f"{report['top1_agreement']:.2%}"
        text += f"; top-1 agreement with the {report['top1_against']} {share}"
    if report.get("onnxruntime_top1_agreement") is not None:
        text += f", with onnxruntime {report['onnxruntime_top1_agreement']:.2%}"
    console.print(text)


def _agreement(layer: dict[str, Any], prefix: str) -> tuple[str, str]:
    equal = layer.get(f"{prefix}equal")
    if equal is None:
        return "", ""
    return f"{equal:.3%}" if equal < 1 else "all", f"{layer[f'{prefix}max_step']:g}"
