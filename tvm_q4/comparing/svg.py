"""A matplotlib figure as an SVG element that lives well inside a page.

Colours are variables of the page's style sheet, so that light and dark both work; text stays text;
ids are unique in the page; parts have titles, which browsers show as tooltips and screen readers
read. Nothing in it points outside the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib needs colours of its own: each stands for a variable, by which it is replaced.
INK, MUTED, GRID, FRONT, OTHER = "#010203", "#010204", "#010205", "#010206", "#010207"
BITS_8, BITS_4, W4A8, FLOAT, CELL = "#010208", "#010209", "#01020a", "#01020b", "#01020c"
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", FRONT: "front", OTHER: "other", BITS_8: "bits8",
    BITS_4: "bits4", W4A8: "w4a8", FLOAT: "float", CELL: "cell",
}  # fmt: skip
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tvm-q4",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "text.parse_math": False,
    "path.simplify": True,
}
_PIXELS = 4 / 3
"""Of a point."""
_FONT = re.compile(r"font: (?:(\d+) )?([\d.]+)px [^;]*")
_SPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


def inline_svg(
    figure: Figure,
    name: str,
    title: str,
    description: str,
    titles: Mapping[str, str],
    shrink: float = 0,
) -> str:
    """The figure as an ``<svg>`` element.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    name : str
        Begins every id; unique in the page.
    title, description : str
        For those who do not see it.
    titles : mapping of str to str
        Tooltip of the artist with each gid.
    shrink : float
        Least width as a share of the natural one; what does not fit is scrolled.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for child in list(root):
        if child.tag == f"{_SPACE}metadata" or child.find(f"{_SPACE}style") is not None:
            root.remove(child)
    for element in root.iter():
        _clean(element, name, titles)
    width = float(root.attrib["viewBox"].split()[2]) * _PIXELS
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
        "style": f"max-width: {width:.0f}px; min-width: {width * shrink:.0f}px",
    }
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(position, element)
    return _colours(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element, name: str, titles: Mapping[str, str]) -> None:
    """Drop name spaces, prefix ids and references to them, and add the tooltip."""
    element.tag = element.tag.removeprefix(_SPACE)
    given = element.attrib.get("id")
    if _LINK in element.attrib:
        element.attrib["href"] = element.attrib.pop(_LINK).replace("#", f"#{name}-", 1)
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.attrib[key] = f"{name}-{value}"
        elif "url(#" in value:
            element.attrib[key] = value.replace("url(#", f"url(#{name}-")
        elif key == "style":
            element.attrib[key] = _FONT.sub(_font, value)
    if given is not None and given in titles:
        title = ElementTree.Element("title")
        title.text = titles[given]
        element.insert(0, title)


def _font(match: re.Match[str]) -> str:
    """Leave the family to the page."""
    weight = f"; font-weight: {match[1]}" if match[1] else ""
    return f"font-size: {match[2]}px{weight}"


def _colours(text: str) -> str:
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
