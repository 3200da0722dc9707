"""The progress bar: on standard error, at a terminal only, and in the log with ``-v``."""

from __future__ import annotations

import logging

import pytest

from tvm_q4.progress import ProgressBar


def work(show: bool | None) -> None:
    with ProgressBar("compile", 2, show=show) as bar:
        for name in ("import", "kernels"):
            bar.step(name)
            bar.advance()


def test_it_is_silent_where_standard_error_is_no_terminal(capsys: pytest.CaptureFixture) -> None:
    work(None)
    assert capsys.readouterr() == ("", "")


def test_it_shows_the_step_on_standard_error(capsys: pytest.CaptureFixture) -> None:
    work(True)
    out, err = capsys.readouterr()
    assert out == "" and "compile: kernels" in err


def test_steps_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tvm_q4"):
        work(False)
    assert [r.getMessage() for r in caplog.records] == ["compile: import", "compile: kernels"]
