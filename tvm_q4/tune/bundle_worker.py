"""Runs the candidates of this folder for ``run.py``, which starts it and ends it when it is late.

Requests come on standard input and answers go to standard output, one JSON object a line. A request
names the ``kind`` of device, and either the ``features`` that a CPU must have, or a ``case``, the
folders of a group (``folders``) that is timed in turn, ``rounds`` and ``burst_ms``.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
MOST_CALLS = 10_000
DEVICE_TYPES = {"cpu": 1, "cuda": 2}


def serve() -> None:
    """Answer requests on standard input, one JSON object a line, until it is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with answers
    device = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            check_features(request.get("features", []))
            device = device or Device(request["kind"])
            answer = device.measure(request) if "folders" in request else device.facts()
        except Exception as error:  # whatever the runtime raises is the answer
            lines = [text.strip() for text in str(error).splitlines() if text.strip()]
            answer = {"error": lines[-1] if lines else type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


class Device:
    """The CPU, or the first GPU that CUDA shows."""

    def __init__(self, kind: str) -> None:
        import tvm_ffi

        self.ffi, self.kind = tvm_ffi, kind
        ctypes.CDLL(str(FOLDER / "lib" / "libtvm_runtime.so"), mode=ctypes.RTLD_GLOBAL)
        if kind == "cuda":
            load_cuda()
        self.device = tvm_ffi.device(kind, 0)
        self.call = tvm_ffi.get_global_func
        if not self.attribute(0):
            raise RuntimeError("the driver is here, but shows no GPU; check nvidia-smi")

    def attribute(self, number: int) -> Any:
        """0: whether it exists; 4: compute capability; 5: name."""
        return self.call("runtime.GetDeviceAttr")(DEVICE_TYPES[self.kind], 0, number)

    def facts(self) -> dict[str, Any]:
        """What records say of the device."""
        if self.kind == "cuda":
            major, minor = str(self.attribute(4)).split(".")
            return {"device": str(self.attribute(5)), "device_arch": 10 * int(major) + int(minor)}
        return {"device": cpu_name(), "threads": int(self.call("runtime.NumThreads")())}

    def tensor(self, array: Any) -> Any:
        """A tensor on the device with an array's values."""
        import numpy as np

        array = np.ascontiguousarray(array)
        tensor = self.empty(array.shape, str(array.dtype))
        pointer = ctypes.c_void_p(array.ctypes.data)
        self.call("runtime.TVMTensorCopyFromBytes")(tensor, pointer, array.nbytes)
        return tensor

    def empty(self, shape: Any, dtype: str) -> Any:
        """A tensor on the device without values."""
        allocate = self.call("runtime.TVMTensorAllocWithScope")
        return allocate(self.ffi.Shape(shape), self.ffi.dtype(dtype), self.device, None)

    def array(self, tensor: Any, like: Any) -> Any:
        """A tensor's values, as an array of the shape and dtype of `like`."""
        import numpy as np

        found = np.empty_like(like)
        pointer = ctypes.c_void_p(found.ctypes.data)
        self.call("runtime.TVMTensorCopyToBytes")(tensor, pointer, found.nbytes)
        return found

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Check and time a group: for each kernel its samples, and whether it is exact."""
        import numpy as np

        with np.load(FOLDER / request["case"]) as file:
            case = {prefix: numbered(file, prefix) for prefix in "xym"}
        inputs = [self.tensor(array) for array in case["x"]]
        kernels = [Kernel(self, FOLDER / f, inputs, case["y"]) for f in request["folders"]]
        exact = [matches(kernel.run(case["y"]), case) for kernel in kernels]
        for kernel in kernels:
            kernel.calibrate(request["burst_ms"])
        times: list[list[float]] = [[] for _ in kernels]
        for number in range(request["rounds"]):
            order = range(len(kernels))
            for i in order if number % 2 == 0 else reversed(order):
                times[i].append(kernels[i].seconds(kernels[i].calls) * 1e6)
        return {"times_us": times, "exact": exact}


class Kernel:
    """A loaded candidate with its arguments on the device."""

    def __init__(self, device: Device, folder: Path, inputs: list[Any], outputs: list[Any]) -> None:
        import numpy as np

        facts = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))
        self.device, self.symbol, self.calls = device, facts["symbol"], 1
        self.module = device.ffi.load_module(str(folder / "kernel.so"))
        with np.load(folder / "constants.npz") as file:
            constants = [device.tensor(array) for array in numbered(file, "c")]
        scratch = [device.empty(shape, dtype) for shape, dtype in facts["scratch"]]
        self.outputs = [device.tensor(np.zeros_like(array)) for array in outputs]
        self.arguments = [*inputs, *constants, *scratch, *self.outputs]

    def run(self, outputs: list[Any]) -> list[Any]:
        """What it makes of the inputs."""
        device = self.device
        self.module[self.symbol](*self.arguments)
        device.call("runtime.Device_StreamSync")(device.device, 0)
        pairs = zip(self.outputs, outputs)  # noqa: B905 - Python 3.9 knows no strict
        return [device.array(tensor, like) for tensor, like in pairs]

    def calibrate(self, burst_ms: float) -> None:
        """Choose how many calls make a sample."""
        once = max(self.seconds(1), 1e-7)
        self.calls = max(1, min(MOST_CALLS, math.ceil(burst_ms * 1e-3 / once)))

    def seconds(self, calls: int) -> float:
        """Time of a call by the device's own clock, the mean of so many in a row."""
        make = self.device.call("runtime.RPCTimeEvaluator")
        kind = DEVICE_TYPES[self.device.kind]
        evaluate = make(self.module, self.symbol, kind, 0, calls, 1, 0, 100, 0, 1, 0, "")
        return float(memoryview(bytes(evaluate(*self.arguments))).cast("d")[0])


def numbered(file: Any, prefix: str) -> list[Any]:
    """Arrays ``x0``, ``x1``, ... of a loaded ``.npz``."""
    count = sum(name.startswith(prefix) for name in file.files)
    return [file[f"{prefix}{i}"] for i in range(count)]


def matches(found: list[Any], case: dict[str, list[Any]]) -> bool:
    """Whether all bits that count are the expected ones."""
    triples = zip(found, case["y"], case["m"])  # noqa: B905
    return all(
        bool((a == b).all()) if b.dtype.kind == "f" else not ((a ^ b) & mask).any()
        for a, b, mask in triples
    )


def load_cuda() -> None:
    """Load the driver's library, CUDA's runtime and TVM's runtime for it."""
    roots = {Path(sysconfig.get_path(name)) / "nvidia" for name in ("purelib", "platlib")}
    runtime = "libcudart.so.13"
    packaged = sorted(str(p) for root in roots for p in root.glob(f"cu*/lib/{runtime}"))
    if not loads("libcuda.so.1"):
        raise RuntimeError("this machine has no NVIDIA driver (libcuda.so.1 does not load)")
    if not any(loads(name) for name in (runtime, *packaged)):
        raise RuntimeError(f'{runtime} is missing; run: pip install "nvidia-cuda-runtime==13.*"')
    ctypes.CDLL(str(FOLDER / "lib" / "libtvm_runtime_cuda.so"), mode=ctypes.RTLD_GLOBAL)


def loads(name: str) -> bool:
    """Load a shared library for all that comes after."""
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def cpu_info(key: str) -> str:
    """A value of the first processor in ``/proc/cpuinfo``; empty where there is none."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def cpu_name() -> str:
    """What this CPU calls itself."""
    return cpu_info("model name") or platform.processor() or platform.machine()


def check_features(names: list[str]) -> None:
    """Refuse a CPU without the instructions of the code, which would end the process."""
    flags = {flag.replace("_", "") for flag in cpu_info("flags").split()}
    if "bmi1" in flags:  # LLVM's name is another one
        flags.add("bmi")
    missing = [name for name in names if name.replace("-", "") not in flags]
    if flags and missing:
        raise RuntimeError(f"this CPU lacks {', '.join(missing)}, which the code uses")


if __name__ == "__main__":
    serve()
