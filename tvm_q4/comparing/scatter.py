"""Pareto plots: accuracy against a cost, one point a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tvm_q4.comparing import svg
from tvm_q4.comparing.summary import cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES: dict[str, tuple[str, float]] = {
    "latency_ms": ("latency, ms a batch", 1.0),
    "bops": ("bit operations, GBOPs", 1e-9),
    "weight_bytes": ("weights as deployed, kB", 1e-3),
}
"""Label and unit of each cost."""
TITLES = {
    "latency_ms": "Accuracy against latency",
    "bops": "Accuracy against bit operations",
    "weight_bytes": "Accuracy against size",
}
_SIZE = (3.9, 3.4)
_NAME = 22
_OFFSETS = (
    (7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 8, "center", "bottom"),
    (0, -8, "center", "top"), (6, 7, "left", "bottom"), (6, -7, "left", "top"),
    (-6, 7, "right", "bottom"), (-6, -7, "right", "top"), (8, 16, "left", "bottom"),
    (8, -16, "left", "top"), (-8, 16, "right", "bottom"), (-8, -16, "right", "top"),
    (10, 26, "left", "bottom"), (10, -26, "left", "top"), (-10, -26, "right", "top"),
    (-10, 26, "right", "bottom"),
)  # fmt: skip
"""Where a point's name may stand, in points from it, best first."""


def pareto_plot(rows: Sequence[Mapping[str, Any]], key: str) -> str | None:
    """Accuracy against the cost `key` as SVG; None where fewer than two rows have both.

    Points that no other one beats are filled and joined; a dashed line is the float model.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points = [r for r in rows if r["kind"] != "float" and r["accuracy"] and cost(r, key)]
    if len(points) < 2:
        return None
    titles: dict[str, str] = {}
    with rc_context(svg.RC):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        floats = _draw_float(axes, rows)
        _draw_front(axes, points, key)
        for index, row in enumerate(points):
            titles |= _draw_point(axes, row, key, index)
        axes.set_xlabel(_label(points, key))
        axes.set_ylabel("top-1 accuracy, %")
        axes.margins(0.14, 0.16)
        _place_names(axes, points, key, floats)
        name = f"pareto-{key.replace('_', '-')}"
        return svg.inline_svg(figure, name, TITLES[key], _description(points, key), titles)


def _label(points: Sequence[Mapping[str, Any]], key: str) -> str:
    """Name of a cost's axis; a latency's says how it was obtained."""
    if key != "latency_ms":
        return AXES[key][0]
    sources = sorted({row["latency"]["source"] for row in points})
    return f"{AXES[key][0]} ({', '.join(sources)})"


def _position(row: Mapping[str, Any], key: str) -> tuple[float, float]:
    value = cost(row, key)
    assert value is not None
    return value * AXES[key][1], row["accuracy"]["top1"] * 100


def _draw_float(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A dashed line with a name for each float model; returns the names."""
    names = []
    for row in rows:
        if row["kind"] == "float" and row["accuracy"]:
            level = row["accuracy"]["top1"] * 100
            axes.axhline(level, color=svg.FLOAT, linestyle=(0, (4, 3)), linewidth=1)
            name = axes.annotate(
                f"{_short(row['name'])} {level:.2f}", (1, level), (0, 2), ha="right", va="bottom",
                xycoords=axes.get_yaxis_transform(), textcoords="offset points", fontsize=8,
                color=svg.FLOAT,
            )  # fmt: skip
            names.append(name)
    return names


def _draw_front(axes: Axes, points: Sequence[Mapping[str, Any]], key: str) -> None:
    best = sorted(_position(row, key) for row in points if row["front"][key])
    xs, ys = zip(*best, strict=True) if best else ((), ())
    axes.plot(
        xs, ys, drawstyle="steps-post", color=svg.FRONT, linewidth=1.2, alpha=0.7, gid="front"
    )


def _draw_point(axes: Axes, row: Mapping[str, Any], key: str, index: int) -> dict[str, str]:
    x, y = _position(row, key)
    best = row["front"][key]
    colour = svg.FRONT if best else svg.OTHER
    error = row["accuracy"]["stderr"] * 100
    axes.errorbar(x, y, error, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6)
    gid = f"point-{index}"
    face = colour if best else "none"
    style: dict[str, Any] = {"marker": "o", "markersize": 7, "markeredgewidth": 1.4}
    axes.plot([x], [y], markerfacecolor=face, markeredgecolor=colour, gid=gid, **style)
    where = "on the Pareto front" if best else "not on the Pareto front"
    label = AXES[key][0]
    return {gid: f"{row['name']}: {y:.2f} % ± {error:.2f}, {x:.4g} ({label}); {where}"}


def _place_names(
    axes: Axes, points: Sequence[Mapping[str, Any]], key: str, floats: Sequence[Any]
) -> None:
    """Write each name where it covers nothing else, or least."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    square_point = (figure.dpi / 72) ** 2
    spots = [axes.transData.transform(_position(row, key)) for row in points]
    marks = [_box(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    taken = [text.get_window_extent() for text in floats] + _lines(axes)
    area = axes.get_window_extent()
    for i in sorted(range(len(points)), key=lambda i: not points[i]["front"][key]):
        text = axes.annotate(
            _short(points[i]["name"]), _position(points[i], key), (0, 0), fontsize=8.5,
            textcoords="offset points", color=svg.FRONT if points[i]["front"][key] else svg.MUTED,
        )  # fmt: skip
        others = [*marks[:i], *marks[i + 1 :], *taken]
        found: list[tuple[float, int, Any]] = []
        for rank, place in enumerate(_OFFSETS):
            _move(text, place)
            box = text.get_window_extent()
            covered = sum(_overlap(box, other) for other in others) + _outside(box, area)
            found.append((covered / square_point + rank, rank, box))
        _, rank, box = min(found, key=lambda entry: entry[:2])
        _move(text, _OFFSETS[rank])
        taken.append(box)


def _move(text: Any, place: tuple[int, int, str, str]) -> None:
    text.set(position=place[:2], ha=place[2], va=place[3])


def _lines(axes: Axes) -> list[Any]:
    """Boxes around the straight pieces of the front and of float models' lines."""
    boxes = []
    for line in axes.get_lines():
        path: Any = line.get_transform().transform_path(line.get_path()).vertices
        if line.get_drawstyle() == "steps-post":
            path = [p for a, b in pairwise(path) for p in (a, (b[0], a[1]))] + list(path[-1:])
        boxes += [_thin(a, b) for a, b in pairwise(path)]
    return boxes


def _thin(a: Any, b: Any) -> Any:
    return _box(min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)


def _box(x0: float, y0: float, x1: float, y1: float) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x0, y0, x1, y1)


def _overlap(a: Any, b: Any) -> float:
    """Common area of two boxes."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0) * max(height, 0)


def _outside(box: Any, area: Any) -> float:
    return box.width * box.height - _overlap(box, area)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _description(points: Sequence[Mapping[str, Any]], key: str) -> str:
    label = AXES[key][0]
    parts = [
        f"{row['name']} {y:.2f} % at {x:.4g}{' (front)' if row['front'][key] else ''}"
        for row in points
        for x, y in [_position(row, key)]
    ]
    return f"Top-1 accuracy against {label}: {'; '.join(parts)}."
