"""``report.html``: what is in it, that it is escaped, and that it asks the network for nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.comparing import reports

pytest.importorskip("matplotlib", reason="plots need matplotlib: install tvm-q4[compare]")

from tvm_q4.comparing import svg
from tvm_q4.comparing.html import page

_VOID = {"meta", "br", "img", "link"}


class Outline(HTMLParser):
    """Tags and ids of a page; checks that what is opened is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(str(value))
            found = re.findall(r"url\(([^)]*)\)", str(value))
            self.references += found + ([str(value)] if key in ("href", "src") else [])


@pytest.fixture(scope="module")
def text() -> str:
    return page(reports.three())


def test_the_page_is_well_formed_and_has_its_parts(text: str) -> None:
    outline = Outline(text)
    assert len(set(outline.ids)) == len(outline.ids)
    assert {"summary", "pareto-latency-ms-title", "pareto-bops-title", "layers-title"} <= set(
        outline.ids
    )
    assert outline.tags.count("svg") == 4
    assert outline.tags.count("h2") == 5


def test_nothing_points_outside_the_page(text: str) -> None:
    outline = Outline(text)
    assert outline.references
    assert all(reference.startswith("#") for reference in outline.references)
    assert {reference[1:] for reference in outline.references} <= set(outline.ids)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(outline.tags)
    assert not re.search(r"https?:|//\w|@import|@font-face", text)
    assert "default-src 'none'" in text


def test_every_config_has_a_row_with_its_values(text: str) -> None:
    table = text[text.index('<table id="summary">') : text.index("</table>")]
    rows = dict(re.findall(r'<th scope="row">(\w+).*?</th>(.*?)</tr>', table))
    assert list(rows) == ["uniform8", "uniform4", "float"]
    for value in ("85.00 %", "± 1.13 · -5.00", "0.50x (0.50..0.50)", "0.9 to 1.2", "bit-exact"):
        assert value in rows["uniform4"]
    assert "ms" not in rows["float"]


def test_points_and_cells_have_tooltips(text: str) -> None:
    assert "<title>uniform8: 90.00 % ± 0.95, 2 (latency, ms a batch); on the Pareto front" in text
    assert "<title>layer1.0.conv1 in uniform4: W4A4</title>" in text
    assert "<title>conv1 at 8: 0.2 ms (measured)</title>" in text


def test_colours_are_variables_that_the_style_sheet_has_for_light_and_dark(text: str) -> None:
    used = set(re.findall(r"var\((--\w+)\)", text))
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    names, dark_names = (set(re.findall(r"(--\w+):", part)) for part in (light, dark))
    assert used <= names
    assert dark_names == names - {"--cell"}  # text on coloured cells, which are light in both
    assert not any(colour in text for colour in svg._VARIABLES)


NASTY = "<script>alert('x')</script>&\"$x_2$\n"


def test_names_are_escaped_everywhere() -> None:
    rows = [
        reports.row(name, bits, bits, 900 + bits, spec=NASTY, notes=[NASTY], how=NASTY)
        for name, bits in ((NASTY, 8), (NASTY + "2", 4))
    ]
    made = reports.report(rows, (NASTY, "fc")) | {"model": NASTY, "command": NASTY}
    made["inputs"] |= {"data": NASTY, "log": [NASTY]}
    text = page(made)
    assert "<script" not in text
    assert "script" not in Outline(text).tags
    assert text.count("&lt;script&gt;") > 10


def test_a_library_that_is_not_exact_is_marked() -> None:
    rows = [reports.row("uniform8", 8, 2.0, 900), reports.row("b", 4, 1.0, 950, bit_exact=False)]
    text = page(reports.report(rows))
    assert '<tr class="failed"><th scope="row">b' in text
    assert "Not bit-exact with the reference: b." in text


@pytest.mark.parametrize("count", [1, 2])
def test_without_accuracies_the_page_says_what_to_give(count: int) -> None:
    rows = [reports.row(f"c{i}", 8, 1.0, None) for i in range(count)]
    text = page(reports.report(rows))
    assert "Give labelled --data" in text
    assert Outline(text).tags.count("svg") == 1


def test_predicted_latencies_are_called_so() -> None:
    changes: dict[str, Any] = {"p10_ms": None, "p90_ms": None, "rounds_ms": [], "n": 0}
    changes |= {"source": "predicted", "device": "sm_75"}
    changes |= {"layers_from_log": 3, "layers_predicted": 18}
    row = reports.row("uniform8", 8, 1.0, 900, bit_exact=None)
    row["latency"] = reports.latency(1.5, **changes)
    other = reports.row("b", 4, 1.0, 900, bit_exact=None)
    other["latency"] = reports.latency(1.25, **changes)
    text = page(reports.report([row, other]))
    assert "latency, ms a batch (predicted)" in text
    assert "rounds" not in text
    assert '<span class="sub">predicted</span>' in text
    assert "predicted for sm_75, not measured: sum of 18 predicted layers and 3 from" in text


def test_measured_latencies_say_where_and_with_what_kernels(text: str) -> None:
    found = "measured: 70 calls on A CPU, 1 thread, wall clock; kernels&#x27; parameters "
    assert f"{found}from the tuning log for 3, predicted for 1" in text


def test_only_the_float_model() -> None:
    row = reports.row("float", 32, 1.0, 900, kind="float", latency=None, library_bytes=None)
    assert Outline(page(reports.report([row]))).tags.count("svg") == 0


@pytest.mark.slow
def test_ten_configs_of_a_deep_network_make_a_small_page() -> None:
    rows = [reports.row(f"plan {i} with a long name", 8, 1 + i / 9, 900 + i) for i in range(10)]
    text = page(reports.report(rows, tuple(f"layer{i}.0.conv1" for i in range(54))))
    assert len(text.encode()) < 1_000_000
