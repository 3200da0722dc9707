"""What is installed here and what each target can do with it: the verb ``doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tvm_q4 import __version__, _compat
from tvm_q4.errors import Q4Error
from tvm_q4.library.nvcc import Tool, find_tool

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
CUDA_TOOLS = ("nvcc", "cuobjdump", "nvdisasm")
CPU_FLAGS = ("avx2", "avx512f", "avx512vl", "avx512_vnni", "avx_vnni")


def doctor() -> dict[str, Any]:
    """Describe this machine as tvm-q4 sees it.

    Returns
    -------
    dict
        ``ok`` (whether this CPU can be compiled for and run on), ``problems`` (list of str),
        ``versions`` (package to version or None), ``ffi_pair_ok``, ``compilers`` (``c++``,
        ``nvcc``, ``cuobjdump`` and ``nvdisasm``, each ``{"path", "version", "found"}``, where
        ``found`` says what led to it, or None), ``cpu`` (``name``, ``cores``, ``features``,
        ``kernel_forms``), ``gpus`` (list of name, compute capability and driver), ``cuda`` (what
        keeps TVM's runtime for CUDA from running here, or None) and ``targets`` (target to
        ``{"compile", "run", "note"}``).
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
    gpus, tools = _gpus(), {name: find_tool(name) for name in CUDA_TOOLS}
    cuda = _cuda_problem() if pair is None else "not usable"
    targets = _cpu_target(pair is None, cpp is not None, cpu)
    if pair is None:
        targets |= _cuda_targets(tools["nvcc"] if cpp else None, gpus, runs=cuda is None)
    return {
        "ok": not problems,
        "problems": problems,
        "versions": {"tvm-q4": __version__, "python": platform.python_version()}
        | {name: _compat.installed_version(name) for name in PACKAGES},
        "ffi_pair_ok": pair is None,
        "compilers": {"c++": cpp} | {name: _tool(tool) for name, tool in tools.items()},
        "cpu": cpu,
        "gpus": gpus,
        "cuda": cuda,
        "targets": targets,
    }


def _cpu_target(pair_ok: bool, cpp: bool, cpu: dict[str, Any]) -> dict[str, Any]:
    forms = cpu.get("kernel_forms", {})
    note = f"W8A8 runs as {forms['w8a8']}, W4A4 as {forms['w4a4']}" if forms else "not usable"
    return {"llvm": {"compile": pair_ok and cpp, "run": pair_ok, "note": note}}


def _cuda_targets(nvcc: Tool | None, gpus: list[dict[str, str]], *, runs: bool) -> dict[str, Any]:
    """What can be done here for each of the usual archs."""
    from tvm_q4.cuda_target import DEFAULT_ARCHS, CudaTarget, int4_note
    from tvm_q4.library.cuda_device import can_run

    known = nvcc.archs() if nvcc else []
    devices = [int(gpu["compute_capability"].replace(".", "")) for gpu in gpus] if runs else []
    return {
        f"cuda:sm_{arch}": {
            "compile": arch in known,
            "run": any(can_run(CudaTarget((arch,)).to_json(), device) for device in devices),
            "note": int4_note(arch),
        }
        for arch in DEFAULT_ARCHS
    }


def _cuda_problem() -> str | None:
    from tvm_q4.library.cuda_device import load_runtime

    return load_runtime()


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
    variable = next((name for name in ("CXX", "CC") if os.environ.get(name)), None)
    names = ["g++", "gcc", "clang++", "clang", "c++", "cc"]
    if variable is not None:
        names = [os.environ[variable]]
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        return None
    version = _first_line([path, "--version"])
    return {"path": path, "version": version, "found": variable or "PATH"}


def _tool(tool: Tool | None) -> dict[str, str] | None:
    if tool is None:
        return None
    return {"path": str(tool.path), "version": tool.version(), "found": tool.origin}


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
