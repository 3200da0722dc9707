"""The command line's frame: exit codes, one-line errors, JSON, help, pipes and interrupts."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable

import click
import pytest

from tvm_q4 import __version__, environment
from tvm_q4.cli import main
from tvm_q4.cli.main import VERBS
from tvm_q4.errors import CheckFailed, InputError

Fake = Callable[[Callable[[], object]], None]


@pytest.fixture
def fake_doctor(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Lets the verb ``doctor`` call another function, to make it fail in every way."""
    monkeypatch.setattr("tvm_q4.doctor", environment.doctor, raising=False)
    return lambda function: monkeypatch.setattr(environment, "doctor", function)


def raising(error: BaseException) -> Callable[[], object]:
    def function() -> object:
        raise error

    return function


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option '--nonsense'"),
        ([], "Missing command"),
        (["doctor", "--nonsense"], "No such option '--nonsense'"),
        (["doctor", "extra"], "unexpected extra argument"),
        (["doctor", "--seed", "-1"], "-1 is not in the range"),
        (["compile"], "Missing argument 'MODEL'"),
        (["compile", "m.pt2"], "Missing option '-o'"),
        (["compile", "m.pt2", "-o", "x.so", "--image-size", "61"], "HEIGHTxWIDTH"),
        (["compile", "m.pt2", "-o", "x.so", "--image-size", "0x61"], "HEIGHTxWIDTH"),
        (["compile", "m.pt2", "-o", "x.so", "--batch", "0"], "0 is not in the range"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in error_line(capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_the_common_options(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  tvm-q4 {verb}" in text.partition("Example:")[2]
    for option in ("--json", "--seed", "-v", "--version", "--help"):
        assert option in text
    assert main([verb, "--version"]) == 0
    assert capsys.readouterr().out == f"tvm-q4 {__version__}\n"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb}  " in text for verb in VERBS)


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["ok"] else 1)
    assert report["versions"]["tvm-q4"] == __version__


@pytest.mark.parametrize(("error", "code"), [(InputError, 2), (CheckFailed, 1)])
def test_our_errors_are_one_line_with_their_code(
    error: type[Exception], code: int, fake_doctor: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_doctor(raising(error("layer 'a':\n  value 3")))
    assert main(["doctor"]) == code
    assert error_line(capsys) == "error: layer 'a': value 3"


def test_a_file_error_names_the_file(fake_doctor: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake_doctor(raising(PermissionError(13, "Permission denied", "x.so")))
    assert main(["doctor"]) == 2
    assert error_line(capsys) == "error: 'x.so': Permission denied"


def test_an_unexpected_error_is_one_line_without_v_and_a_traceback_with_it(
    fake_doctor: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_doctor(raising(ZeroDivisionError("first\nlast")))
    assert main(["doctor"]) == 2
    assert "ZeroDivisionError: last" in error_line(capsys)
    assert main(["doctor", "-v"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("Traceback")
    assert captured.err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.exceptions.Abort()])
def test_interrupts_end_without_a_traceback(
    error: BaseException, fake_doctor: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_doctor(raising(error))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


@pytest.mark.filterwarnings("ignore:not shown")
def test_warnings_follow_success_and_are_dropped_with_bad_input(
    fake_doctor: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(then: Callable[[], object]) -> Callable[[], object]:
        def function() -> object:
            logging.getLogger("tvm_q4.compiler").warning("2 operators stay %s", "float")
            logging.getLogger("tvm_q4.compiler").info("not shown")
            warnings.warn("not shown either", stacklevel=1)
            return then()

        return function

    report = environment.doctor()
    fake_doctor(warn(lambda: report))
    main(["doctor", "--json"])
    assert capsys.readouterr().err == "warning: 2 operators stay float\n"
    fake_doctor(warn(raising(InputError("bad"))))
    main(["doctor"])
    assert error_line(capsys) == "error: bad"
    main(["doctor", "-v"])
    assert "info: not shown" in capsys.readouterr().err


def test_a_closed_pipe_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tvm_q4", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
