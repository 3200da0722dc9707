"""Keep the remarks of torch and torchao off standard error, where our own lines stand."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence warnings of torch and torchao, those that they give when imported included.

    Raises
    ------
    ModuleNotFoundError
        If torch is not installed.
    """
    importlib.import_module("torch")  # importing it sets its loggers up anew
    loggers = [logging.getLogger(name) for name in ("torch", "torchao")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
