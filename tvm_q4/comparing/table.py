"""The page's summary table: a row a config, values and their ratios to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from tvm_q4.comparing.layers import PRECISIONS
from tvm_q4.comparing.summary import COSTS, cost
from tvm_q4.comparing.text import DASH, bytes_text, latency_range, spread_text, verified_text

_GIGA = 1e9
_HEADS = (
    ("config", ""), ("layers at each precision", ""), ("top-1 accuracy", "± standard error"),
    ("latency, ms", "median, p10 to p90"), ("weights", "deployed; params x bits"),
    ("BOPs", "bit operations"), ("library", "file"), ("verified", "against the reference"),
)  # fmt: skip
_LEFT = ' class="text"'


def summary_table(report: Mapping[str, Any]) -> str:
    """The table as HTML, with the best quantized value of each column marked."""
    rows = report["configs"]
    best = _best(rows)
    head = "".join(
        f'<th scope="col"{css}>{escape(text)}<span class="sub">{escape(sub)}</span></th>'
        for (text, sub), css in zip(_HEADS, ("", _LEFT, *[""] * len(_HEADS)), strict=False)
    )
    body = "\n".join(_row(row, report["baseline"], best) for row in rows)
    return (
        '<div class="scroll"><table id="summary">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _best(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The best value of each column among quantized configs that are not known to be wrong."""
    good = [row for row in rows if row["kind"] != "float" and row["bit_exact"] is not False]
    found = {key: [c for c in (cost(row, key) for row in good) if c is not None] for key in COSTS}
    best = {key: min(values) for key, values in found.items() if values}
    rated = [row["accuracy"]["top1"] for row in good if row["accuracy"]]
    return best | ({"accuracy": max(rated)} if rated else {})


def _row(row: Mapping[str, Any], baseline: str | None, best: Mapping[str, float]) -> str:
    classes = ["base"] if row["name"] == baseline else []
    classes += ["failed"] if row["bit_exact"] is False else []
    source = row["kind"] if row["spec"] == row["name"] else PurePath(row["spec"]).name
    notes = [*([] if source == row["name"] else [source]), *row["notes"]]
    notes += ["ratios are to this one"] if row["name"] == baseline else []
    name = escape(row["name"]) + "".join(f'<span class="sub">{escape(n)}</span>' for n in notes)
    ratios = row["ratios"]
    library = _cell(bytes_text(row["library_bytes"]), _times(ratios.get("library_bytes")))
    mark = {True: "good", False: "bad", None: "muted"}[row["bit_exact"]]
    verified = f'<td><span class="{mark}">{verified_text(row["bit_exact"])}</span></td>'
    cells = [
        _bits(row["bits"]),
        _accuracy(row, best),
        _latency(row, best),
        _cell(
            bytes_text(row["weight_bytes"]),
            f"{bytes_text(row['weight_bytes_ideal'])}{_times(ratios.get('weight_bytes'), ' · ')}",
            _is_best(row, "weight_bytes", best),
        ),
        _cell(
            f"{row['bops'] / _GIGA:.4g} G", _times(ratios.get("bops")), _is_best(row, "bops", best)
        ),
        library,
        verified,
    ]
    css = f' class="{" ".join(classes)}"' if classes else ""
    return f'<tr{css}><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _cell(value: str, sub: str = "", best: bool = False) -> str:
    shown = f'<span class="best">{escape(value)}</span>' if best else escape(value)
    below = f'<span class="sub">{escape(sub)}</span>' if sub else ""
    return f"<td>{shown}{below}</td>"


def _times(ratio: float | None, before: str = "") -> str:
    return "" if ratio is None else f"{before}{ratio:.2f}x"


def _is_best(row: Mapping[str, Any], key: str, best: Mapping[str, float]) -> bool:
    value = cost(row, key)
    good = row["kind"] != "float" and row["bit_exact"] is not False
    return good and value is not None and value == best.get(key)


def _bits(bits: Mapping[str, int]) -> str:
    order = [key for key in (*PRECISIONS, "float") if key in bits]
    words = {"8": "8 bit", "4": "4 bit", "w4a8": "W4A8", "float": "float"}
    text = ", ".join(f"{bits[key]} x {words[key]}" for key in order)
    total = sum(bits.values())
    strip = "".join(
        f'<span class="b{key}" style="width: {bits[key] / total:.2%}"></span>' for key in order
    )
    shown = f'{escape(text)}<span class="strip">{strip}</span>'
    return f'<td class="text">{shown}</td>'


def _accuracy(row: Mapping[str, Any], best: Mapping[str, float]) -> str:
    found = row["accuracy"]
    if found is None:
        return _cell(DASH)
    sub = f"± {found['stderr'] * 100:.2f}"
    if row["accuracy_change"]:
        sub += f" · {row['accuracy_change'] * 100:+.2f}"
    is_best = row["kind"] != "float" and found["top1"] == best.get("accuracy")
    return _cell(f"{found['top1'] * 100:.2f} %", sub, is_best)


def _latency(row: Mapping[str, Any], best: Mapping[str, float]) -> str:
    found = row["latency"]
    if found is None:
        return _cell(DASH)
    value = f"{found['median_ms']:.4g}"
    ratio = spread_text(row["ratios"].get("latency"))
    range_text = f'<span class="sub">{escape(latency_range(found))}</span>'
    cell = _cell(value, ratio, _is_best(row, "latency_ms", best))
    return cell.replace("</td>", f"{range_text}</td>")
