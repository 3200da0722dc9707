"""What is installed here and what each target can do with it: the verb ``doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from tvm_q4 import __version__, _compat
from tvm_q4.errors import Q4Error

PACKAGES = (
    "apache-tvm",
    "apache-tvm-ffi",
    "numpy",
    "torch",
    "torchvision",
    "torchao",
    "onnx",
    "onnxruntime",
    "xgboost-cpu",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512vl", "avx512_vnni", "avx_vnni")


def doctor() -> dict[str, Any]:
    """Describe this machine as tvm-q4 sees it.

    Returns
    -------
    dict
        ``ok`` (whether this CPU can be compiled for and run on), ``problems`` (list of str),
        ``versions`` (package to version or None), ``ffi_pair_ok``, ``compilers`` (``c++`` and
        ``nvcc``, each ``{"path", "version"}`` or None), ``cpu`` (``name``, ``cores``,
        ``features``, ``kernel_forms``), ``gpus`` (list of name, compute capability and driver) and
        ``targets`` (target to ``{"compile", "run", "note"}``).
    """
    pair = _compat.installed_pair_problem()
    problems = [pair] if pair else []
    cpp, cpu = _cpp_compiler(), _cpu()
    if cpp is None:
        problems.append(
            "no C++ compiler found: libraries run, but cannot be made; install g++ or clang++"
        )
    if pair is None:
        try:
            cpu |= _kernel_forms()
        except Q4Error as error:
            problems.append(str(error))
    gpus = _gpus()
    return {
        "ok": not problems,
        "problems": problems,
        "versions": {"tvm-q4": __version__, "python": platform.python_version()}
        | {name: _compat.installed_version(name) for name in PACKAGES},
        "ffi_pair_ok": pair is None,
        "compilers": {"c++": cpp, "nvcc": _nvcc()},
        "cpu": cpu,
        "gpus": gpus,
        "targets": _targets(pair is None, cpp is not None, cpu, bool(gpus)),
    }


def _targets(pair_ok: bool, cpp: bool, cpu: dict[str, Any], gpu: bool) -> dict[str, Any]:
    forms = cpu.get("kernel_forms", {})
    note = f"W8A8 runs as {forms['w8a8']}, W4A4 as {forms['w4a4']}" if forms else "not usable"
    found = "a GPU was found" if gpu else "no GPU was found"
    return {
        "llvm": {"compile": pair_ok and cpp, "run": pair_ok, "note": note},
        "cuda": {"compile": False, "run": False, "note": f"no kernels in this version ({found})"},
    }


def _kernel_forms() -> dict[str, Any]:
    """LLVM's name of this CPU, and the best dot-product form for the two uniform precisions."""
    from tvm_q4.quant import IntRange
    from tvm_q4.schedules.cpu.dot import dot_forms
    from tvm_q4.targets import cpu_target

    target = cpu_target()
    forms = {
        "w8a8": dot_forms(target, IntRange(0, 255), 8)[0].name,
        "w4a4": dot_forms(target, IntRange(0, 15), 4)[0].name,
    }
    return {"mcpu": str(target.attrs["mcpu"]), "kernel_forms": forms}


def _cpu() -> dict[str, Any]:
    name, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
            break
    return {
        "name": name,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "features": {flag: flag in flags for flag in CPU_FLAGS},
    }


def _cpp_compiler() -> dict[str, str] | None:
    # The order in which TVM looks, which links the libraries.
    chosen = os.environ.get("CXX") or os.environ.get("CC")
    names = (chosen,) if chosen else ("g++", "gcc", "clang++", "clang", "c++", "cc")
    paths = [path for name in names if (path := shutil.which(name))]
    return {"path": paths[0], "version": _first_line([paths[0], "--version"])} if paths else None


def _nvcc() -> dict[str, str] | None:
    path = shutil.which("nvcc") or _packaged_nvcc()
    if path is None:
        return None
    output = _run([path, "--version"])
    release = [line.strip() for line in output.splitlines() if "release" in line]
    return {"path": path, "version": release[0] if release else ""}


def _packaged_nvcc() -> str | None:
    """The nvcc that the extra ``cuda`` brings."""
    try:
        files = metadata.files("nvidia-cuda-nvcc") or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(f.locate()) for f in files if f.name == "nvcc"), None)


def _gpus() -> list[dict[str, str]]:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    query = _run([smi, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"])
    rows = [[field.strip() for field in line.split(",")] for line in query.splitlines()]
    return [
        dict(zip(("name", "compute_capability", "driver"), r, strict=True))
        for r in rows
        if len(r) == 3
    ]


def _first_line(command: list[str]) -> str:
    return next(iter(_run(command).splitlines()), "")


def _run(command: list[str]) -> str:
    """Standard output of a short command; an empty string where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
