"""Quantization: bit configs, and PT2E recipes that turn float networks into quantized ones.

Bit configs need nothing; the rest needs the `torch` extra and is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from tvm_q4.errors import EnvironmentMismatch
from tvm_q4.quantize.config import PRESETS, BitConfig, LayerBits, load_bit_config
from tvm_q4.quiet import quiet_torch

_LAZY = {
    "AdaRoundOptions": "tvm_q4.quantize.adaround",
    "Q4Quantizer": "tvm_q4.quantize.quantizer",
    "quantize_ptq": "tvm_q4.quantize.ptq",
    "convert": "tvm_q4.quantize.ptq",
    "prepare_qat": "tvm_q4.quantize.qat",
    "load_program": "tvm_q4.quantize.program",
    "save_program": "tvm_q4.quantize.program",
    "TrainingOptions": "tvm_q4.quantize.training",
    "train_qat": "tvm_q4.quantize.training",
    "quantize_model": "tvm_q4.quantize.workflow",
    "quantize_at_random": "tvm_q4.quantize.random_calibration",
}

__all__ = [
    "PRESETS",
    "AdaRoundOptions",
    "BitConfig",
    "LayerBits",
    "Q4Quantizer",
    "TrainingOptions",
    "convert",
    "load_bit_config",
    "load_program",
    "prepare_qat",
    "quantize_at_random",
    "quantize_model",
    "quantize_ptq",
    "save_program",
    "train_qat",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    try:
        with quiet_torch():
            return getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchao"):
            raise
        msg = f"quantization needs {error.name}; install it with: pip install 'tvm-q4[torch]'"
        raise EnvironmentMismatch(msg) from error
