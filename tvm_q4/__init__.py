"""tvm-q4: quantization-aware-trained ResNets to integer-only libraries, on Apache TVM.

The names in ``__all__`` are the Python form of the command line's verbs, ``quantize_model`` and
``tune_model`` being those of ``quantize`` and ``tune``: `tvm_q4.quantize` and `tvm_q4.tune` are the
packages with their parts. They load on first use, so
that ``import tvm_q4`` costs nothing and running a library needs neither torch nor xgboost.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tvm_q4 import _compat
from tvm_q4.errors import (
    CheckFailed,
    EnvironmentMismatch,
    InputError,
    LibraryError,
    NumericsError,
    Q4Error,
    TargetError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from tvm_q4.benchmark import bench
    from tvm_q4.comparing import compare
    from tvm_q4.compiler import compile_model as compile
    from tvm_q4.environment import doctor
    from tvm_q4.evaluation import evaluate
    from tvm_q4.frontend import load_model
    from tvm_q4.inference import run_file as run
    from tvm_q4.inspection import inspect
    from tvm_q4.layer_latency import latency
    from tvm_q4.library import Library, load
    from tvm_q4.planning.workflow import plan
    from tvm_q4.quantize import quantize_model
    from tvm_q4.sensitivities import sensitivity
    from tvm_q4.tune import tune_model
    from tvm_q4.verification import verify

__all__ = [
    "CheckFailed",
    "EnvironmentMismatch",
    "InputError",
    "Library",
    "LibraryError",
    "NumericsError",
    "Q4Error",
    "TargetError",
    "UnsupportedError",
    "bench",
    "compare",
    "compile",
    "doctor",
    "evaluate",
    "inspect",
    "latency",
    "load",
    "load_model",
    "plan",
    "quantize_model",
    "run",
    "sensitivity",
    "tune_model",
    "verify",
]

__version__ = "0.1.0"

# No module of this package may have the name of one of these functions: importing it would put the
# module in the function's place.
_LAZY = {
    "Library": ("tvm_q4.library", "Library"),
    "bench": ("tvm_q4.benchmark", "bench"),
    "compare": ("tvm_q4.comparing.workflow", "compare"),
    "compile": ("tvm_q4.compiler", "compile_model"),
    "doctor": ("tvm_q4.environment", "doctor"),
    "evaluate": ("tvm_q4.evaluation", "evaluate"),
    "inspect": ("tvm_q4.inspection", "inspect"),
    "latency": ("tvm_q4.layer_latency", "latency"),
    "load": ("tvm_q4.library", "load"),
    "load_model": ("tvm_q4.frontend", "load_model"),
    "plan": ("tvm_q4.planning.workflow", "plan"),
    "quantize_model": ("tvm_q4.quantize", "quantize_model"),
    "run": ("tvm_q4.inference", "run_file"),
    "sensitivity": ("tvm_q4.sensitivities", "sensitivity"),
    "tune_model": ("tvm_q4.tune.workflow", "tune_model"),
    "verify": ("tvm_q4.verification", "verify"),
}

_compat.require_pair()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
