"""The per-layer chart: bits by config, latency at each precision, sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvm_q4.comparing import svg
from tvm_q4.comparing.layers import PRECISIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Titles = dict[str, str]
COLOURS = {"8": svg.BITS_8, "4": svg.BITS_4, "w4a8": svg.W4A8, "float": svg.FLOAT}
_ROW, _CELL, _NAMES, _HEAD, _PAGE = 0.2, 0.34, 1.7, 1.25, 12.0
"""Inches: height of a layer, width of a config, of layers' names; height of the rest; a page."""
_BARS = (1.8, 4.5)
"""Least and most inches of bars."""
_LONGEST = 26


def layer_chart(layers: Sequence[Mapping[str, Any]], configs: Sequence[str]) -> str:
    """A row a layer, as SVG: a cell a config with its bits, and bars where there are values."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    keys = [key for key in ("latency_ms", "sensitivity") if any(layer[key] for layer in layers)]
    cells = _CELL * max(len(configs), 2)
    bars = min(max((_PAGE - _NAMES - cells) / max(len(keys), 1), _BARS[0]), _BARS[1])
    widths = [cells, *(bars for _ in keys)]
    titles: Titles = {}
    with rc_context(svg.RC):
        size = (_NAMES + sum(widths), _HEAD + _ROW * len(layers))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
        titles |= _draw_bits(grid[0], layers, configs)
        for axes, key in zip(grid[1:], keys, strict=True):
            titles |= _draw_bars(axes, layers, key)
        grid[0].set_ylim(len(layers) - 0.5, -0.5)
        grid[0].set_yticks(range(len(layers)), [_short(layer["name"]) for layer in layers])
        text = f"Precision of {len(layers)} layers in {len(configs)} configs: " + "; ".join(
            f"{name} has {_counts(layers, name)}" for name in configs
        )
        return svg.inline_svg(figure, "layers", "Layer by layer", f"{text}.", titles, 0.75)


def _draw_bits(axes: Axes, layers: Sequence[Mapping[str, Any]], configs: Sequence[str]) -> Titles:
    from matplotlib.patches import Rectangle

    titles = {}
    for column, config in enumerate(configs):
        for row, layer in enumerate(layers):
            bits = layer["bits"].get(config)
            if bits is None:
                continue
            gid = f"bits-{column}-{row}"
            titles[gid] = f"{layer['name']} in {config}: {_words(bits)}"
            corner = (column - 0.47, row - 0.44)
            axes.add_patch(
                Rectangle(
                    corner, 0.94, 0.88, facecolor=COLOURS[bits], linewidth=0, gid=gid, clip_on=False
                )
            )
            text = "4/8" if bits == "w4a8" else bits
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=svg.CELL)
    axes.set_xlim(-0.5, max(len(configs), 2) - 0.5)
    axes.set_xticks(range(len(configs)), [_short(c) for c in configs], rotation=45, ha="left")
    axes.xaxis.set_ticks_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    return titles


def _draw_bars(axes: Axes, layers: Sequence[Mapping[str, Any]], key: str) -> Titles:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    shown = [p for p in PRECISIONS if any(p in layer[key] for layer in layers)]
    height = 0.8 / len(shown)
    titles = {}
    for rank, precision in enumerate(shown):
        for row, layer in enumerate(layers):
            if precision not in layer[key]:
                continue
            value = layer[key][precision]
            (bar,) = axes.barh(
                row - 0.4 + height * (rank + 0.5), value, height * 0.92, color=COLOURS[precision]
            )
            gid = f"{key}-{precision}-{row}"
            bar.set_gid(gid)
            source = f" ({layer['source'].get(precision, '')})" if key == "latency_ms" else ""
            unit = " ms" if key == "latency_ms" else ""
            titles[gid] = f"{layer['name']} at {precision}: {value:.4g}{unit}{source}"
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.xaxis.set_ticks_position("top")
    axes.xaxis.set_label_position("top")
    axes.spines["bottom"].set_visible(False)
    axes.spines["top"].set_visible(True)
    if key == "sensitivity" and _is_wide(layers):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_major_formatter("{x:.0e}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("sensitivity (log scale)")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("latency, ms a batch" if key == "latency_ms" else key)
    return titles


def _is_wide(layers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether sensitivities are positive and span what a linear axis cannot show."""
    values = [value for layer in layers for value in layer["sensitivity"].values()]
    return min(values) > 0 and max(values) > 100 * min(values)


def _words(bits: str) -> str:
    return {"8": "W8A8", "4": "W4A4", "w4a8": "W4A8"}.get(bits, bits)


def _counts(layers: Sequence[Mapping[str, Any]], config: str) -> str:
    found = [layer["bits"].get(config) for layer in layers]
    return ", ".join(f"{found.count(b)} at {_words(b)}" for b in COLOURS if b in found)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"…{name[-_LONGEST + 1 :]}"
