"""`tvm_q4.plan`: from layer tables and limits to the bits of every layer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError
from tvm_q4.json_file import write_json
from tvm_q4.layer_table import LayerTable, from_dict, join, read_table
from tvm_q4.planning.costs import ACTIVATION, BITS, SENSITIVITY, Network, network_of
from tvm_q4.planning.explain import bits_of, explain, number, reference
from tvm_q4.planning.infeasible import infeasible
from tvm_q4.planning.limits import (
    CHOICES,
    FRACTIONS,
    Limit,
    parse_choices,
    parse_fixes,
    parse_limits,
)
from tvm_q4.planning.solver import Solution, solve
from tvm_q4.planning.sweep import Point
from tvm_q4.planning.sweep import sweep as pareto
from tvm_q4.quantize.config import BitConfig, LayerBits

logger = logging.getLogger(__name__)

Table = str | Path | Mapping[str, Any] | LayerTable


def plan(
    tables: Table | Sequence[Table],
    *,
    limits: Mapping[str, float] | Iterable[str] = (),
    fix: Mapping[str, int | str] | Iterable[str] = (),
    choices: str | Iterable[int | str] = "4,8",
    sweep: str | None = None,
    points: int = 9,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Choose the bits of every layer: least summed sensitivity within limits, exactly.

    The integer program of HAWQ-V3 (Yao et al. 2021, section 3.2), with any set of limits together,
    W4A8 as a third precision, and the time that boundaries between precisions cost.

    Parameters
    ----------
    tables : path, dict, LayerTable, or a sequence of these
        Layer tables, joined by layer name.
    limits : mapping of str to float, or iterable of str
        ``{"size": 0.5}`` or ``["size=0.5"]``. ``size``, ``bops`` and ``latency`` are fractions of
        the way from all layers at 4 to all at 8 bits, whatever `fix` says; ``size_bytes``,
        ``bops_total`` and ``latency_ms`` are absolute.
    fix : mapping of str to int or str, or iterable of str
        Layers held at 8, 4 or "w4a8".
    choices : str or iterable
        Precisions to choose from, some of 4, 8 and "w4a8".
    sweep : str, optional
        ``size``, ``bops`` or ``latency``: solve for budgets from all 4 to all 8 bits of it.
    points : int
        Budgets of a sweep.
    output : path, optional
        File for the bit config; a folder for those of a sweep, ``<sweep>_<point>.json``.

    Returns
    -------
    dict
        ``status`` "optimal"; ``bits`` (8, 4 or "w4a8") by layer; ``sensitivity``; ``costs`` and
        ``budgets`` by ``size_bytes``, ``bops_total``, ``latency_ms`` (costs where the tables tell
        them); ``proof`` ("exact", or "solver", see `planning.solver.Solution`); and what
        `planning.explain.explain` says. Of a sweep: ``sweep``, ``points`` with ``fraction``,
        ``budget`` and the first four of these keys each, and ``references``.

    Raises
    ------
    InputError
        If a table, a limit, a fixed layer or a choice cannot be used.
    CheckFailed
        If no plan keeps the limits; says which one is too tight and by how much.
    EnvironmentMismatch
        If scipy is not installed (the extra ``plan``).
    """
    table, where = _read(tables)
    parsed = parse_limits(limits)
    fixes = parse_fixes(fix, [row.name for row in table.layers])
    if sweep is None and not parsed:
        raise InputError("there is no limit, so all layers stay at 8 bits; give one or a sweep")
    needed = {limit.cost for limit in parsed}
    if sweep is not None:
        needed.add(_check_sweep(sweep, points, parsed))
    network = network_of(table, parse_choices(choices), fixes, needed, where)
    _warn_of_slow_4_bits(network, [limit.name for limit in parsed] + [sweep or ""])
    head = {key: getattr(table, key) for key in ("network", "batch", "target")}
    if sweep is not None:
        return head | _sweep(network, parsed, sweep, points, output)
    solution = solve(network.problem({limit.cost: network.budget(limit) for limit in parsed}))
    if solution is None:
        raise infeasible(network, parsed)
    result = {
        "status": "optimal",
        **_answer(network, solution),
        "budgets": {limit.cost: number(network.budget(limit)) for limit in parsed},
        **explain(network, parsed, solution.chosen),
    }
    if output is not None:
        write_json(_config(network, solution).to_dict(), output, "bit config")
    return head | result


def _read(tables: Table | Sequence[Table]) -> tuple[LayerTable, str]:
    given = [tables] if isinstance(tables, str | Path | Mapping | LayerTable) else list(tables)
    names, found = [], []
    for i, table in enumerate(given):
        name = str(table) if isinstance(table, str | Path) else f"layer table {i + 1}"
        names.append(name)
        if isinstance(table, LayerTable):
            found.append(table)
        elif isinstance(table, Mapping):
            found.append(from_dict(dict(table), name))
        else:
            found.append(read_table(table))
    return join(found, names), ", ".join(names)


def _check_sweep(name: str, points: int, limits: Sequence[Limit]) -> str:
    """The cost of a sweep."""
    if name not in FRACTIONS:
        raise InputError(f"sweep '{name}' is unknown; there are {', '.join(FRACTIONS)}")
    if points < 2:
        raise InputError(f"a sweep of {points} points has no two ends; give 2 or more")
    for limit in limits:
        if limit.cost == FRACTIONS[name]:
            raise InputError(f"limit '{limit}' is on what is swept; leave it out")
    return FRACTIONS[name]


def _warn_of_slow_4_bits(network: Network, names: Sequence[str]) -> None:
    if "latency" not in names:
        return
    low, high = (float(end) for end in network.span("latency_ms"))
    if low > high:
        logger.warning(
            "all layers at 4 bits take %.4g ms, more than the %.4g ms at 8: a fraction of the "
            "latency goes from the larger to the smaller",
            low,
            high,
        )


def _sweep(
    network: Network, limits: Sequence[Limit], name: str, count: int, output: str | Path | None
) -> dict[str, Any]:
    points = pareto(network, limits, name, count)
    if not points:
        low, high = network.span(FRACTIONS[name])
        raise infeasible(network, [*limits, Limit(name, Fraction(int(high >= low)))])
    if output is not None:
        _write_points(network, name, points, Path(output))
    return {
        "status": "optimal",
        "sweep": name,
        "points": [
            {"fraction": float(point.fraction), "budget": number(point.budget)}
            | _answer(network, point.solution)
            for point in points
        ],
        "references": {bits: reference(network, network.uniform(bits)) for bits in ("8", "4")},
    }


def _answer(network: Network, solution: Solution) -> dict[str, Any]:
    names = [row.name for row in network.table.layers]
    values = {n: q.of(solution.chosen, ACTIVATION) for n, q in network.quantities.items()}
    sensitivity = float(values.pop(SENSITIVITY))
    return {
        "bits": {name: bits_of(c) for name, c in zip(names, solution.chosen, strict=True)},
        "sensitivity": sensitivity,
        "costs": {name: number(value) for name, value in values.items()},
        "proof": solution.proof,
    }


def _config(network: Network, solution: Solution) -> BitConfig:
    """The bit config of a plan: all at 8 bits but the layers that it names."""
    chosen = {
        row.name: LayerBits(*BITS[CHOICES[choice]])
        for row, choice in zip(network.table.layers, solution.chosen, strict=True)
    }
    eight = LayerBits(8, 8)
    return BitConfig(eight, {name: bits for name, bits in chosen.items() if bits != eight})


def _write_points(network: Network, name: str, points: Sequence[Point], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder '{folder}' cannot be made: {error.strerror}") from None
    for i, point in enumerate(points):
        config = _config(network, point.solution).to_dict()
        write_json(config, folder / f"{name}_{i}.json", "bit config")
