"""``tvm-q4 inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import COUNT, IMAGE_SIZE, PATH, hawq_options
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console


@verb(
    "inspect",
    example="""
    tvm-q4 inspect model.so
    tvm-q4 inspect model.pt2 --recipe model_recipe
    tvm-q4 inspect model.so --extract model_parts --json
    """,
)
@click.argument("model_or_library")
@click.option("--batch", type=COUNT, help="Images a run; models only.")
@click.option("--image-size", type=IMAGE_SIZE, help="Height and width in pixels; models only.")
@hawq_options
@click.option("--recipe", type=PATH, metavar="DIR", help="Write the model as an integer recipe.")
@click.option(
    "--extract", type=PATH, metavar="DIR", help="Write the library's metadata.json and device code."
)
def command(
    options: Options,
    *,
    model_or_library: str,
    batch: int | None,
    image_size: tuple[int, int] | None,
    recipe: Path | None,
    extract: Path | None,
    **hawq: Any,
) -> None:
    """Report layers, bits, shapes, sizes and BOPs, and what is not integer and why."""
    import tvm_q4

    report = tvm_q4.inspect(
        model_or_library,
        batch=batch,
        image_size=image_size,
        seed=options.seed,
        recipe=recipe,
        extract=extract,
        **hawq,
    )
    options.emit(report, lambda console: _show(console, report))


def _show(console: Console, report: dict[str, Any]) -> None:
    metadata = report["metadata"]
    size = f", {report['bytes'] / 1e6:.2f} MB" if report["bytes"] is not None else ""
    console.print(f"{report['kind']} {report['path']}{size}", soft_wrap=True)
    if metadata["model"].get("source_format"):
        console.print(f"from {_source(metadata['model'])}", soft_wrap=True)
    shape = "x".join(str(n) for n in metadata["input"]["shape"])
    console.print(
        f"input {shape} {metadata['input']['dtype']}, output {metadata['output']['dtype']}"
    )
    if report["kind"] == "library":
        memory, target = metadata["memory"], metadata["target"]
        sizes = [memory[key] / 1e6 for key in ("weight_bytes", "arena_bytes")]
        console.print(
            f"{_target(target)}, weights {sizes[0]:.2f} MB, activations {sizes[1]:.2f} MB"
        )
    _show_layers(console, metadata["layers"], report["totals"], report["kind"] == "library")
    for note in report["notes"]:
        console.print(note, soft_wrap=True)
    float_ops = metadata["float_ops"]
    console.print("integer only" if not float_ops else f"{len(float_ops)} operators stay float:")
    for op in float_ops:
        console.print(f"  {op['name']} ({op['op']}): {op['reason']}", soft_wrap=True)


def _source(model: dict[str, Any]) -> str:
    """Where a model came from: format, tool and further facts."""
    facts = [f"{key} {value}" for key, value in (model.get("source_details") or {}).items()]
    rest = ", ".join([*filter(None, [model.get("source_tool")]), *facts])
    return f"{model['source_format']} ({rest})" if rest else str(model["source_format"])


def _target(target: dict[str, Any]) -> str:
    if target["kind"] != "cuda":
        return f"target {target['kind']} {target.get('mcpu', '')}"
    archs = ", ".join(f"sm_{arch}" for arch in target["archs"])
    return f"target cuda, machine code for {archs}, PTX of sm_{target['ptx']}"


def _show_layers(
    console: Console, layers: list[dict[str, Any]], totals: dict[str, Any], compiled: bool
) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("layer")
    table.add_column("bits")
    for name in ("in", "out", "params", "MMACs", "MBOPs", "kB"):
        table.add_column(name, justify="right")
    if compiled:
        table.add_column("executes as")
        table.add_column("parameters")
    for layer in layers:
        extra = [layer["executes_as"], layer.get("source") or ""] if compiled else []
        table.add_row(
            layer["name"],
            f"W{layer['weight_bits']}A{layer['activation_bits']}",
            "x".join(str(n) for n in layer["in_shape"][1:]),
            "x".join(str(n) for n in layer["out_shape"][1:]),
            *_amounts(layer),
            *extra,
        )
    table.add_row("total", "", "", "", *_amounts(totals))
    console.print(table)


def _amounts(of: dict[str, Any]) -> tuple[str, str, str, str]:
    return (
        f"{of['params']:,}",
        f"{of['macs'] / 1e6:,.2f}",
        f"{of['bops'] / 1e6:,.1f}",
        f"{of['weight_bytes'] / 1e3:,.1f}",
    )
