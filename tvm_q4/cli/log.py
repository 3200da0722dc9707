"""What goes to standard error: warnings after success, everything with ``-v``.

An error is exactly one line, so warnings are held back until a verb is done, and dropped where it
fails on bad input. With ``-v`` records are printed as they come.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

_ROOT = logging.getLogger("tvm_q4")
_held: list[str] = []


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        if verbose():
            print(line, file=sys.stderr)
        else:
            _held.append(line)


_HANDLER = _Handler()


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Take over logging and warnings for one run of the command line."""
    _held.clear()
    _ROOT.setLevel(logging.WARNING)
    _ROOT.propagate = False
    _ROOT.addHandler(_HANDLER)
    with warnings.catch_warnings():
        try:
            yield
        finally:
            _ROOT.removeHandler(_HANDLER)
            _ROOT.propagate = True
            _ROOT.setLevel(logging.NOTSET)


def set_verbosity(count: int) -> None:
    """Level by the number of ``-v``: 0 warnings of tvm-q4 only, 1 information, 2 details."""
    if count:
        _ROOT.setLevel(logging.INFO if count == 1 else logging.DEBUG)
    else:
        # Those of torch and of its exporters tell nothing that a user of tvm-q4 can act on.
        warnings.simplefilter("ignore")
        logging.getLogger("torch").setLevel(logging.ERROR)


def verbose() -> bool:
    """Whether ``-v`` was given."""
    return _ROOT.isEnabledFor(logging.INFO)


def flush(show: bool) -> None:
    """Print what was held back, or forget it."""
    if show:
        for line in _held:
            print(line, file=sys.stderr)
    _held.clear()
