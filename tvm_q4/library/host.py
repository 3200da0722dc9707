"""Whether this machine can run a library: instruction set, TVM version."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_q4.errors import LibraryError

# LLVM's names of the x86 extensions that it uses on its own once a CPU is named, or that our
# kernels ask for. Others (tuning flags, system instructions) never decide whether code runs.
_PREFIXES = ("avx", "amx")
_NAMES = frozenset({"fma", "f16c", "bmi", "bmi2", "gfni", "vaes", "vpclmulqdq"})
_LINUX_NAMES = {"bmi1": "bmi"}


def cpu_flags(cpuinfo: str | None = None) -> frozenset[str] | None:
    """Instruction set extensions of this CPU by LLVM's names; None where they cannot be told.

    Parameters
    ----------
    cpuinfo : str, optional
        Text in the form of Linux's ``/proc/cpuinfo``, which is read where None.
    """
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        if not path.is_file():
            return None
        cpuinfo = path.read_text(encoding="utf-8", errors="replace")
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(_LINUX_NAMES.get(f, f).replace("_", "") for f in value.split())
    return None


def cpu_name() -> str:
    """What this CPU calls itself, such as ``Intel(R) Xeon(R) Processor``."""
    path = Path("/proc/cpuinfo")
    lines = (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    )
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def missing_features(needed: set[str], flags: frozenset[str] | None) -> list[str]:
    """Those of LLVM's feature names that decide whether code runs and that the CPU lacks."""
    if flags is None:
        return []
    relevant = {n for n in needed if n.startswith(_PREFIXES) or n in _NAMES}
    return sorted(n for n in relevant if n.replace("-", "") not in flags)


def check_host(metadata: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a library whose instructions this CPU does not have; running it would end in SIGILL.

    Raises
    ------
    LibraryError
        If the library's target CPU has extensions that this one lacks.
    """
    target = metadata.get("target", {})
    mcpu = target.get("mcpu")
    if target.get("kind") != "llvm" or not mcpu or platform.machine() not in ("x86_64", "AMD64"):
        return
    from tvm.target import Target

    from tvm_q4._compat import llvm_get_cpu_features

    needed = {str(f) for f in llvm_get_cpu_features(Target({"kind": "llvm", "mcpu": mcpu}))}
    missing = missing_features(needed, cpu_flags())
    if missing:
        msg = (
            f"library '{path}' was compiled for CPU {mcpu!r}, this one lacks {', '.join(missing)}; "
            "compile the model for this CPU with --target llvm"
        )
        raise LibraryError(msg)


def version_note(metadata: Mapping[str, Any]) -> str:
    """A hint for load errors where another TVM compiled the library; else empty."""
    from importlib.metadata import PackageNotFoundError, version

    built = metadata.get("tools", {}).get("apache-tvm")
    try:
        here = version("apache-tvm")
    except PackageNotFoundError:
        return ""
    return f" (compiled with apache-tvm {built}, this is {here})" if built != here else ""
