"""The TVM that this version works with, and the TVM names that move between releases.

apache-tvm and apache-tvm-ffi come as two packages that share a C++ ABI which nothing checks: a pair
that was not built together imports well and crashes later, inside the scheduler. `require_pair`
looks at the installed versions without importing either, so that a wrong pair is a readable error.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tvm_q4.errors import EnvironmentMismatch

# TVM's names that moved in recent releases, or that are not among its documented ones: where the
# pinned release has them. They are imported when asked for, because TVM must not load before
# `require_pair` has run.
_TVM_NAMES = {
    "GenericConst": ("tvm.ir", "GenericConst"),  # relax.Constant until 0.26
    "IRBuilder": ("tvm.script.ir_builder", "IRBuilder"),
    "T": ("tvm.tirx.script.builder", "ir"),  # tvm.script.ir_builder.tir until 0.23
    "TensorType": ("tvm.relax", "TensorType"),  # relax.TensorStructInfo until 0.25
    "VirtualMachine": ("tvm.runtime.vm", "VirtualMachine"),  # relax.VirtualMachine once
    "default_tir_pipeline": ("tvm.s_tir.pipeline", "default_s_tir_pipeline"),
    "finalize_device_passes": ("tvm.tirx.compilation_pipeline", "finalize_device_passes"),
    "finalize_host_passes": ("tvm.tirx.compilation_pipeline", "finalize_host_passes"),
    "dlight": ("tvm.s_tir", "dlight"),
    "find_cpp_compiler": ("tvm.support.cc", "get_cc"),  # tvm.contrib.cc once
    "find_libtvm_runtime": ("tvm.libinfo", "find_libtvm_runtime"),
    "llvm_get_cpu_features": ("tvm.target.codegen", "llvm_get_cpu_features"),
    "llvm_get_system_cpu": ("tvm.target.codegen", "llvm_get_system_cpu"),
    "llvm_is_valid_cpu": ("tvm.target.codegen", "llvm_is_valid_cpu"),
    "mutator": ("tvm.relax.expr_functor", "mutator"),
    "ptx": ("tvm.script.tirx", "ptx"),
    "ptx_mma": ("tvm.backend.cuda.op", "ptx_legacy_mma"),  # T.ptx_legacy.mma in scripts
    "PyExprMutator": ("tvm.relax.expr_functor", "PyExprMutator"),
    "register_op": ("tvm.ir._ffi_api", "RegisterOp"),
    "register_tir_pipeline": ("tvm.tirx.compilation_pipeline", "register_tir_pipeline"),
    "s_tir": ("tvm", "s_tir"),  # tvm.tir until 0.23
    "set_type": ("tvm.relax.expr", "_update_type"),  # _update_struct_info until 0.25
    "target_has_features": ("tvm.target.codegen", "target_has_features"),
    "tirx": ("tvm", "tirx"),  # tvm.tir until 0.23
}

MIN_BLOCKS_ATTR = "tirx.launch_bounds_min_blocks_per_sm"
"""Key of the statement that gives a kernel's ``__launch_bounds__`` its second argument."""

TVM_PACKAGE = "apache-tvm"
FFI_PACKAGE = "apache-tvm-ffi"
TESTED_PAIRS = {"0.27.0.post1": ("0.1.14.post1",)}
"""Versions of apache-tvm, each with the versions of apache-tvm-ffi that it was tested with."""


def __getattr__(name: str) -> Any:
    if name not in _TVM_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _TVM_NAMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def installed_version(package: str) -> str | None:
    """Version of an installed distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pair_problem(tvm: str | None, ffi: str | None) -> str | None:
    """What is wrong with this pair of versions.

    Parameters
    ----------
    tvm, ffi : str or None
        Installed versions of apache-tvm and apache-tvm-ffi; None where not installed.

    Returns
    -------
    str or None
        One line that says what was found and what to do; None for a tested pair.
    """
    if tvm in TESTED_PAIRS and ffi in TESTED_PAIRS[tvm]:
        return None
    good_tvm, (good_ffi, *_) = next(iter(TESTED_PAIRS.items()))
    found = f"{TVM_PACKAGE} {tvm or '(missing)'} with {FFI_PACKAGE} {ffi or '(missing)'}"
    return (
        f"{found} is not a pair that tvm-q4 was tested with (wrong pairs crash while compiling); "
        f"run: pip install {TVM_PACKAGE}=={good_tvm} {FFI_PACKAGE}=={good_ffi}"
    )


def installed_pair_problem() -> str | None:
    """`pair_problem` of what is installed here."""
    return pair_problem(installed_version(TVM_PACKAGE), installed_version(FFI_PACKAGE))


class _RefuseTvm(importlib.abc.MetaPathFinder):
    """Turns the first ``import tvm`` into an error; put in place for a wrong pair only."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in ("tvm", "tvm_ffi"):
            raise EnvironmentMismatch(self.problem)
        return None


def require_pair() -> None:
    """Make a wrong TVM / tvm-ffi pair an error before TVM's C++ code is loaded.

    A wrong pair does not stop ``import tvm_q4``, so that ``tvm-q4 doctor`` can report it; it stops
    the import of TVM that follows.

    Raises
    ------
    EnvironmentMismatch
        At once, if TVM is loaded already.
    """
    problem = installed_pair_problem()
    if problem is None:
        return
    if "tvm" in sys.modules or "tvm_ffi" in sys.modules:
        raise EnvironmentMismatch(problem)
    sys.meta_path.insert(0, _RefuseTvm(problem))
