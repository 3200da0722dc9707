"""``tvm-q4 plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import PATH
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console

_COSTS = {
    "size_bytes": ("size MB", "MB", 1e6),
    "bops_total": ("GBOPs", "GBOPs", 1e9),
    "latency_ms": ("ms", "ms", 1.0),
}
"""Title, unit and divisor of each cost in tables."""


@verb(
    "plan",
    example="""
    tvm-q4 plan --table sensitivity.json latency.json --limit latency=0.5 -o bits.json
    tvm-q4 plan --table table.json --limit size=0.5 --limit latency_ms=4.2 --fix layer1.0.conv1=8
    tvm-q4 plan --table table.json --sweep latency --points 9 -o plans
    """,
)
@click.argument("more", type=PATH, nargs=-1, metavar="[TABLE.json]...")
@click.option(
    "--table",
    "tables",
    type=PATH,
    multiple=True,
    required=True,
    metavar="TABLE.json",
    help="Layer table; several (repeat it, or list them) are joined by layer name.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="size, bops or latency: a fraction of the way from all 4 to all 8 bits; size_bytes, "
    "bops_total or latency_ms: a budget itself. All limits hold together.",
)
@click.option("--fix", multiple=True, metavar="LAYER=8|4|w4a8", help="Hold a layer at a precision.")
@click.option(
    "--choices", default="4,8", show_default=True, help="Precisions to choose from: 4, 8, w4a8."
)
@click.option(
    "--sweep",
    metavar="NAME",
    help="Pareto front: solve for budgets of size, bops or latency from all 4 to all 8 bits.",
)
@click.option("--points", type=click.IntRange(2), help="Budgets of a sweep; 9 where not given.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="BITS.json|DIR",
    help="Bit config to write, for quantize; of a sweep a folder for NAME_0.json, NAME_1.json ...",
)
def command(
    options: Options,
    *,
    tables: tuple[Path, ...],
    more: tuple[Path, ...],
    sweep: str | None,
    points: int | None,
    output: Path | None,
    **arguments: Any,
) -> None:
    """Choose bits layer by layer: the least sensitivity within limits, exactly.

    Exits with 1 where no plan keeps the limits, and says by how much.
    """
    import tvm_q4
    from tvm_q4.errors import InputError

    files = [*tables, *more]
    if points is not None and sweep is None:
        raise InputError("--points is for a sweep; give --sweep size, bops or latency too")
    result = tvm_q4.plan(files, sweep=sweep, points=points or 9, output=output, **arguments)
    if sweep is None:
        options.emit(result, lambda console: _show_plan(console, result, output))
    else:
        options.emit(result, lambda console: _show_sweep(console, result, output))


def _show_plan(console: Console, result: dict[str, Any], output: Path | None) -> None:
    costs = [name for name in _COSTS if name in result["costs"]]
    if result["lowered"]:
        table = _table("layer", "bits", "sensitivity", *(f"saves {_COSTS[c][1]}" for c in costs))
        for row in result["lowered"]:
            saved = (_amount(cost, row["saved"][cost]) for cost in costs)
            added = row["sensitivity_added"]
            table.add_row(
                row["layer"], str(row["bits"]), "" if added is None else f"{added:+.4g}", *saved
            )
        console.print(table)
    table = _table("", "sensitivity", *(_COSTS[cost][0] for cost in costs))
    for name, found in (
        ("all 8", result["references"]["8"]),
        ("plan", result),
        ("all 4", result["references"]["4"]),
    ):
        if found is not None:
            shown = (_amount(cost, found["costs"].get(cost)) for cost in costs)
            table.add_row(name, f"{found['sensitivity']:.5g}", *shown)
    console.print(table)
    for limit in result["limits"]:
        _, unit, divisor = _COSTS[limit["cost"]]
        console.print(
            f"limit {limit['name']}={limit['value']:g}: {limit['used'] / divisor:,.6g} of "
            f"{limit['budget'] / divisor:,.6g} {unit}, {limit['slack'] / divisor:,.4g} left"
            f"{', binding' if limit['binding'] else ''}",
            soft_wrap=True,
        )
    console.print(_next_step(result["next_step"]), soft_wrap=True)
    lowered, total = len(result["lowered"]), len(result["bits"])
    where = f"; written to {output}" if output is not None else ""
    console.print(f"{lowered} of {total} layers below 8 bits{where}", soft_wrap=True)


def _next_step(step: dict[str, Any] | None) -> str:
    if step is None:
        return "next step: none, no layer can be raised"
    needs = []
    for cost, need in step["needs"].items():
        _, unit, divisor = _COSTS[cost]
        share = f" (fraction {need['fraction']:.4g})" if "fraction" in need else ""
        needs.append(f"{need['more'] / divisor:,.4g} {unit} more{share}")
    bits = ", ".join(f"{name} at {value}" for name, value in step["bits"].items())
    return f"next step: {bits} needs {' and '.join(needs)}, sensitivity {step['sensitivity']:+.4g}"


def _show_sweep(console: Console, result: dict[str, Any], output: Path | None) -> None:
    costs = [name for name in _COSTS if name in result["points"][0]["costs"]]
    titles = (_COSTS[cost][0] for cost in costs)
    table = _table("fraction", "sensitivity", *titles, "below 8 bits")
    for point in result["points"]:
        lowered = sum(bits != 8 for bits in point["bits"].values())
        shown = (_amount(cost, point["costs"][cost]) for cost in costs)
        row = (f"{point['fraction']:.4g}", f"{point['sensitivity']:.5g}", *shown, str(lowered))
        table.add_row(*row)
    console.print(table)
    if output is not None:
        console.print(f"{len(result['points'])} bit configs written to {output}", soft_wrap=True)


def _table(first: str, *titles: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first)
    for title in titles:
        table.add_column(title, justify="right")
    return table


def _amount(cost: str, value: float | None) -> str:
    return "" if value is None else f"{value / _COSTS[cost][2]:,.5g}"
