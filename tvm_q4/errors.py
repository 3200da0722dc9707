"""Exceptions for everything that a user of tvm-q4 can cause.

Each message says what is wrong, where (layer, operator, shape, dtype), the value found and what
to do. The command line prints it as one line behind ``error: `` and exits with `exit_code`.
"""

from __future__ import annotations


class Q4Error(Exception):
    """Base of all errors that tvm-q4 raises on purpose."""

    exit_code = 2


class InputError(Q4Error):
    """A file, an array or an argument that cannot be used as it is."""


class UnsupportedError(Q4Error):
    """A model holds an operator or a quantization that tvm-q4 cannot express exactly."""


class NumericsError(Q4Error):
    """A value leaves the range in which the integer arithmetic is exact (overflow, bad ratio)."""


class TargetError(Q4Error):
    """A target that does not exist, or that cannot do what was asked of it."""


class LibraryError(Q4Error):
    """A compiled library that cannot be read, loaded or run here."""


class EnvironmentMismatch(Q4Error):
    """Installed packages that do not work together (the TVM / tvm-ffi pair, a missing extra)."""


class CheckFailed(Q4Error):
    """A check that the user asked for did not hold (``verify``, ``--strict-log``)."""

    exit_code = 1
