"""TARGET strings: this CPU, CUDA archs and devices, TVM target tags, JSON."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

from tvm.target import Target

from tvm_q4._compat import llvm_get_cpu_features, llvm_get_system_cpu, llvm_is_valid_cpu
from tvm_q4.cuda_target import CudaTarget, choices, from_tvm, parse_cuda
from tvm_q4.errors import TargetError
from tvm_q4.library.host import cpu_flags, missing_features


def parse_target(text: str) -> Target | CudaTarget:
    """A target from what a user wrote.

    Parameters
    ----------
    text : str
        ``llvm`` (this CPU), ``cuda:sm_75,sm_80`` (``cuda`` alone: the usual archs), a device such
        as ``nvidia/nvidia-t4``, another TVM target tag, or a JSON object such as
        ``{"kind": "llvm", "mcpu": "cascadelake"}`` or ``{"kind": "cuda", "arch": "sm_80"}``.

    Raises
    ------
    TargetError
        If there is no such target, or there are no kernels for its kind or architecture.
    """
    text = text.strip()
    if text == "llvm":
        return cpu_target()
    cuda = parse_cuda(text)
    if cuda is not None:
        return cuda
    return _checked(_from_json(text) if text.startswith("{") else _from_tag(text), text)


def as_target(target: str | Target | CudaTarget) -> Target | CudaTarget:
    """`parse_target` of a string; a TVM target is checked in the same way.

    Raises
    ------
    TargetError
        As `parse_target` does.
    """
    if isinstance(target, str):
        return parse_target(target)
    return target if isinstance(target, CudaTarget) else _checked(target, str(target))


def _checked(target: Target, text: str) -> Target | CudaTarget:
    if target.kind.name == "cuda":
        return from_tvm(target, text)
    if target.kind.name != "llvm":
        kind = target.kind.name
        msg = (
            f"target {text!r} is of kind {kind!r}, for which there are no kernels; "
            "use llvm or cuda:sm_75,sm_80,..."
        )
        raise TargetError(msg)
    mcpu = str(target.attrs.get("mcpu", ""))
    triple = str(target.attrs.get("mtriple", "")) or Target("llvm").attrs["mtriple"]
    if mcpu and not llvm_is_valid_cpu(mcpu, triple):
        hint = "see `tvm-q4 doctor` for this one's name"
        raise TargetError(f"target {text!r}: LLVM knows no CPU {mcpu!r}; {hint}")
    return target


def cpu_target() -> Target:
    """The CPU of this machine."""
    return Target({"kind": "llvm", "mcpu": host_cpu(), "num-cores": os.cpu_count() or 1})


def host_cpu(named: str | None = None, flags: frozenset[str] | None = None) -> str:
    """LLVM's name of a CPU whose every instruction this machine has.

    LLVM names a CPU by its model. Where a virtual machine hides some of the model's extensions, the
    best plain level that it has is taken instead.

    Parameters
    ----------
    named : str, optional
        The CPU that LLVM found; asked of LLVM where None.
    flags : frozenset of str, optional
        Extensions of the machine, as `tvm_q4.library.host.cpu_flags` gives them.
    """
    named = llvm_get_system_cpu() if named is None else named
    flags = cpu_flags() if flags is None else flags
    if platform.machine() not in ("x86_64", "AMD64"):
        return named
    for name in (named, "x86-64-v4", "x86-64-v3", "x86-64-v2"):
        needed = {str(f) for f in llvm_get_cpu_features(Target({"kind": "llvm", "mcpu": name}))}
        if not missing_features(needed, flags):
            return name
    return "x86-64"


def target_arch(target: Target) -> str:
    """The name under which tuning records of a target are kept: a CPU's LLVM name, or ``sm_XX``."""
    return str(target.attrs.get("mcpu") or target.attrs.get("arch") or "generic")


def _from_json(text: str) -> Target:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TargetError(f"target {text!r} is not valid JSON: {error}") from None
    if isinstance(config, dict) and config.get("kind") == "cuda":
        _check_cuda_config(config, text)
    try:
        return Target(config)
    except Exception as error:  # TVM raises several kinds for wrong attributes
        raise TargetError(f"target {text!r} is not a TVM target: {_first_line(error)}") from None


def _check_cuda_config(config: dict[str, Any], text: str) -> None:
    """Refuse what would be left out without a word, or what TVM would make up."""
    if "arch" not in config:
        raise TargetError(f'target {text!r} has no "arch"; choose of {choices()}')
    if "host" in config:
        msg = f'target {text!r} names a "host"; the host of a CUDA library is this kind of CPU'
        raise TargetError(f"{msg}, leave it out")


def _from_tag(text: str) -> Target:
    try:
        return Target(text)
    except Exception:
        msg = (
            f"target {text!r} does not exist; use llvm, cuda:sm_75,sm_80, a TVM target tag or JSON"
        )
        raise TargetError(msg) from None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
