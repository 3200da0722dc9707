"""The page in Chromium: plots and table are there, and no address is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.comparing import reports
from tests.comparing.browser import dump_dom

pytest.importorskip("matplotlib", reason="plots need matplotlib: install tvm-q4[compare]")

# Scripts are forbidden by the page's own policy, so a copy without it measures the layout.
_PROBE = """<script>
const wide = document.documentElement.scrollWidth > innerWidth;
const boxes = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
document.body.dataset.wide = wide;
document.body.dataset.drawn = boxes.filter(b => b.width > 200 && b.height > 100).length;
</script></body>"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tvm_q4.comparing.html import page

    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(reports.three()), encoding="utf-8")
    return path


def test_table_and_plots_are_there_and_nothing_is_fetched(page_file: Path, tmp_path: Path) -> None:
    dom, urls = dump_dom(page_file, tmp_path, 1280)
    assert dom.count("<svg") == 4
    assert 'id="summary"' in dom
    assert all(f'<th scope="row">{name}' in dom for name in ("uniform8", "uniform4", "float"))
    assert urls == []


def test_a_page_that_fetches_is_found_out(tmp_path: Path) -> None:
    address = "http://127.0.0.1:9/x.png"
    page = tmp_path / "page.html"
    page.write_text(f'<!DOCTYPE html><title>x</title><img src="{address}">', encoding="utf-8")
    assert dump_dom(page, tmp_path, 800)[1] == [address]


@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_fits_the_window(page_file: Path, tmp_path: Path, width: int) -> None:
    text = page_file.read_text(encoding="utf-8").replace("default-src 'none'", "default-src *")
    text = text.replace("style-src", "script-src 'unsafe-inline'; style-src")
    probe = tmp_path / "probe.html"
    probe.write_text(text.replace("</body>", _PROBE), encoding="utf-8")
    dom, _ = dump_dom(probe, tmp_path, width)
    assert 'data-wide="false"' in dom
    assert 'data-drawn="4"' in dom
