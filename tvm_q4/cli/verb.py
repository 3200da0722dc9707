"""What all verbs share: their common options, and how they print a result."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tvm_q4 import __version__
from tvm_q4.cli import log

if TYPE_CHECKING:
    from rich.console import Console

version_option = click.version_option(
    __version__, prog_name="tvm-q4", message="%(prog)s %(version)s"
)

_FILE_WIDTH = 160
"""Columns of tables where standard output is no terminal."""


@dataclass(frozen=True)
class Options:
    """The options that every verb has.

    Parameters
    ----------
    as_json : bool
        Print one JSON object and nothing else on standard output.
    seed : int
        Seed of everything random.
    """

    as_json: bool
    seed: int

    def emit(self, result: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Print `result` as JSON, or call `show` with a console for people."""
        if self.as_json:
            click.echo(json.dumps(result, indent=2, allow_nan=False))
            return
        from rich.console import Console

        console = Console(highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console.width = _FILE_WIDTH
        show(console)


def verb(name: str, *, example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a verb of a function that takes `Options` and the verb's own arguments.

    Parameters
    ----------
    name : str
    example : str
        Command lines for ``--help``, one a line.
    """

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def callback(*, as_json: bool, seed: int, verbosity: int, **arguments: Any) -> Any:
            log.set_verbosity(verbosity)
            return function(Options(as_json, seed), **arguments)

        lines = "".join(f"  {line.strip()}\n" for line in example.strip().splitlines())
        for option in reversed(_COMMON):
            callback = option(callback)
        return click.command(
            name, epilog=f"\b\nExample:\n{lines}", context_settings={"max_content_width": 100}
        )(callback)

    return wrap


_COMMON = (
    click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of all that is random.",
    ),
    click.option(
        "-v", "--verbose", "verbosity", count=True, help="Log to standard error; twice for details."
    ),
    version_option,
)
