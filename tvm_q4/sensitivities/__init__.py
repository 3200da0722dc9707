"""Sensitivity: how much a network loses when a layer is quantized, the first half of a layer table.

`workflow` has the public function; `network` runs the float network, `gradients` differentiates it
image by image; `hessian` (with `traces`), `fisher` and `output_mse` are the metrics, a file each;
`sampling` draws their samples, resumable; `table` turns these into rows, and `ranking` compares two
orders of the layers. They need the `torch` extra and are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from tvm_q4.errors import EnvironmentMismatch
from tvm_q4.quiet import quiet_torch

__all__ = ["sensitivity"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        with quiet_torch():
            return getattr(importlib.import_module("tvm_q4.sensitivities.workflow"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchao"):
            raise
        msg = f"sensitivity needs {error.name}; install it with: pip install 'tvm-q4[torch]'"
        raise EnvironmentMismatch(msg) from error
