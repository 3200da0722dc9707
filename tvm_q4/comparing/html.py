"""``report.html``: one file that opens offline and asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from tvm_q4.comparing.highlights import highlights
from tvm_q4.comparing.layer_chart import layer_chart
from tvm_q4.comparing.methods import method_rows, method_text
from tvm_q4.comparing.scatter import TITLES, pareto_plot
from tvm_q4.comparing.summary import COSTS
from tvm_q4.comparing.table import summary_table

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_KEY = (("b8", "8 bits (W8A8)"), ("b4", "4 bits (W4A4)"), ("bw4a8", "W4A8"))


def page(report: Mapping[str, Any]) -> str:
    """The whole page of a report that `tvm_q4.compare` made."""
    title = f"{PurePath(report['model']).name} on {report['target']}"
    body = "\n".join(
        (
            _header(report, title),
            _highlights(report),
            _section("Summary", _key() + summary_table(report)),
            _plots(report["configs"]),
            _layers(report),
            _methods(report),
            _details(report),
        )
    )
    style = files("tvm_q4.comparing").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} - tvm-q4 compare</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _header(report: Mapping[str, Any], title: str) -> str:
    machine = report["machine"]
    where = f"Batch {report['batch']}, {_date(report)}, {machine['cpu']}"
    count = len(report["configs"])
    ratio = f"; ratios are to {report['baseline']}" if report["baseline"] else ""
    lines = [f"<h1>{escape(title)}</h1>"]
    lines.append(f'<p class="muted">{count} configs compared{escape(ratio)}. {escape(where)}</p>')
    if not report["ok"]:
        failed = ", ".join(r["name"] for r in report["configs"] if r["bit_exact"] is False)
        text = f"Not bit-exact with the reference: {failed}. Do not use these numbers."
        lines.append(f'<p class="bad">{escape(text)}</p>')
    return "<header>\n" + "\n".join(lines) + "\n</header>"


def _date(report: Mapping[str, Any]) -> str:
    return str(report["date"]).replace("T", " ").replace("+00:00", " UTC")


def _highlights(report: Mapping[str, Any]) -> str:
    cards = [
        f'<div class="card"><span class="what">{escape(what)}</span>'
        f"<strong>{escape(name)}</strong>{escape(value)}</div>"
        for what, name, value in highlights(report)
    ]
    return '<div class="tiles">\n' + "\n".join(cards) + "\n</div>"


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _key() -> str:
    items = "".join(f'<li><span class="{css}"></span>{escape(text)}</li>' for css, text in _KEY)
    return f'<ul class="key">{items}</ul>\n'


def _plots(rows: Sequence[Mapping[str, Any]]) -> str:
    drawn = [(TITLES[key], pareto_plot(rows, key)) for key in COSTS]
    cards = [
        f'<figure class="card"><figcaption>{escape(title)}</figcaption>{plot}</figure>'
        for title, plot in drawn
        if plot is not None
    ]
    if not cards:
        text = "No plot of accuracy: fewer than two configs have one. Give labelled --data, and "
        text += "--calibrate where configs are quantized here."
        return _section("Pareto plots", f"<p>{escape(text)}</p>")
    text = (
        "Up and to the left is better. Filled points are on the Pareto front: no other config is "
        "at least as accurate and costs less. Vertical lines are one standard error of accuracy."
    )
    plots = '<div class="plots">\n' + "\n".join(cards) + "\n</div>"
    return _section("Pareto plots", f"<p>{escape(text)}</p>\n{plots}")


def _layers(report: Mapping[str, Any]) -> str:
    names = [row["name"] for row in report["configs"] if row["kind"] != "float"]
    if not names:
        return ""
    text = "A cell says a layer's bits in a config; 4/8 is W4A8."
    sources = sorted({s for layer in report["layers"] for s in layer["source"].values()})
    if sources:
        text += f" Latencies: {', '.join(sources)}; a layer's time alone, not in the network."
    if any(layer["sensitivity"] for layer in report["layers"]):
        text += " Sensitivity: as the layer table says, higher is worse."
    chart = f'<div class="scroll">{layer_chart(report["layers"], names)}</div>'
    return _section("Layer by layer", f"<p>{escape(text)}</p>\n{_key()}\n{chart}")


def _methods(report: Mapping[str, Any]) -> str:
    head = "".join(
        f'<th class="text">{escape(h)}</th>' for h in ("config", "quantized", "accuracy", "latency")
    )
    rows = [
        f"<tr><th>{escape(name)}</th>"
        + "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for name, *cells in method_rows(report)
    ]
    text = "".join(f"<p>{escape(line)}</p>\n" for line in method_text(report))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return _section("How each number was obtained", f'{text}<div class="scroll">{table}</div>')


def _details(report: Mapping[str, Any]) -> str:
    machine, versions = report["machine"], report["versions"]
    facts = {
        "model": report["model"],
        "date": _date(report),
        "seed": str(report["seed"]),
        "machine": f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['system']}",
        "threads": str(machine["threads"]),
        "tuning logs": ", ".join(report["inputs"]["log"]) or "none",
        "layer tables": ", ".join(report["inputs"]["table"]) or "none",
        "calibration": report["inputs"]["calibrate"] or "none",
        "test data": report["inputs"]["data"] or "none",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items())
        + f", Python {machine['python']}",
    }
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    command = f'<pre class="card">{escape(report["command"])}</pre>'
    return _section("Command and versions", f'{command}\n<dl style="margin-top: 14px">{items}</dl>')
