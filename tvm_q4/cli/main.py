"""Entry point: dispatch to a verb, and turn what goes wrong into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from tvm_q4.cli import log
from tvm_q4.cli.verb import version_option
from tvm_q4.errors import Q4Error

VERBS = (
    "quantize",
    "compile",
    "run",
    "verify",
    "evaluate",
    "bench",
    "inspect",
    "tune",
    "sensitivity",
    "latency",
    "plan",
    "compare",
    "doctor",
)
BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


class _Verbs(click.Group):
    """The verbs, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"tvm_q4.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


_EPILOG = """\b
Example:
  tvm-q4 compile model.pt2 --target llvm -o model.so
  tvm-q4 verify model.so model.pt2

Exit codes: 0 done; 1 a check did not hold; 2 bad input or usage.
"""


@click.group(
    cls=_Verbs, epilog=_EPILOG, no_args_is_help=False, context_settings={"max_content_width": 100}
)
@version_option
def cli() -> None:
    """Compile quantization-aware-trained ResNets to integer-only libraries, and run them."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    args : sequence of str, optional
        Arguments without the program's name; those of this process where None.

    Returns
    -------
    int
        Exit code: 0 done, 1 a check did not hold, 2 bad input or usage (one line on standard error
        that begins with ``error: ``), 130 interrupted, 141 reader of standard output gone.
    """
    with log.session():
        return _run(list(sys.argv[1:] if args is None else args))


def _run(args: list[str]) -> int:
    try:
        code = _invoke(args)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more at exit
        return BROKEN_PIPE
    except Q4Error as error:
        log.flush(error.exit_code != BAD_INPUT)
        return _fail(str(error), error.exit_code)
    except click.ClickException as error:
        return _fail(_usage(error), BAD_INPUT)
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", BAD_INPUT)
    except Exception as error:
        return _fail(_unexpected(error), BAD_INPUT)
    log.flush(True)
    return code if isinstance(code, int) else 0


def _invoke(args: list[str]) -> Any:
    """Parse and run; unlike click's own ``main``, this leaves errors and broken pipes alone."""
    try:
        with cli.make_context("tvm-q4", args) as ctx:
            return cli.invoke(ctx)
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code


def _fail(message: str, code: int) -> int:
    """Print the one line of an error, after its traceback where ``-v`` asked for it."""
    if log.verbose() and sys.exc_info()[1] is not None:
        traceback.print_exc()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    ctx = getattr(error, "ctx", None)
    return f"{message}; see {ctx.command_path} --help" if ctx is not None else message


def _unexpected(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[-1] if lines else '(no message)'}"
    return f"unexpected {said}; this is a fault of tvm-q4, run again with -v to see where"
