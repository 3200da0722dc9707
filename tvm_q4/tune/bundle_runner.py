"""Measures the candidates of this folder on this machine: ``python run.py``.

It needs Python, NumPy and apache-tvm-ffi (the version that it names where another one is
installed); TVM's runtime lies in ``lib``. A GPU needs its driver and ``libcudart.so.13`` besides
(``pip install "nvidia-cuda-runtime==13.*"``), and no compiler. What it finds goes into
``results.jsonl``, which is whole at any moment: end the program when you like, and start it again
to go on. Bring the file back and read it with ``tvm-q4 tune --import results.jsonl --log FILE``.

Every candidate is compared with the expected outputs, bit for bit, and timed in turn with the
candidate that would be compiled without measuring. Each runs in a process of its own kind, which is
killed when it crashes or takes too long.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import math
import os
import platform
import select
import subprocess
import sys
import sysconfig
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
START_LIMIT_S = 120.0
MOST_CALLS = 10_000
CONFIRMED = 3
"""How many of a layer's best candidates are measured again beside its start."""

GIVE_UP = 3
"""Failures in a row, before anything worked, after which the program ends."""

DEVICE_TYPES = {"cpu": 1, "cuda": 2}


class Problem(Exception):
    """What the user is told in one line."""


# ------------------------------------------------------------------ the process that runs kernels


def serve() -> None:
    """Answer requests on standard input, one JSON object a line, until it is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with answers
    manifest = read_manifest()
    device = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            device = device or Device(manifest["kind"])
            answer = device.facts() if "groups" not in request else device.measure(request)
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
            raise Problem("the driver is here, but shows no GPU; check nvidia-smi")

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
        kernels = [Kernel(self, FOLDER / f, inputs, case["y"]) for f in request["groups"]]
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
        raise Problem("this machine has no NVIDIA driver (libcuda.so.1 does not load)")
    if not any(loads(name) for name in (runtime, *packaged)):
        raise Problem(f'{runtime} is missing; run: pip install "nvidia-cuda-runtime==13.*"')
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


# --------------------------------------------------------------- the process that keeps the results


class Worker:
    """The other process; started when needed, killed when late."""

    def __init__(self, threads: int | None) -> None:
        self.environment = dict(os.environ)
        if threads is not None:
            self.environment["TVM_NUM_THREADS"] = str(threads)
        self.process: subprocess.Popen | None = None

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer to a request; ``error`` where there is none in time."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(FOLDER / "run.py"), "--worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=self.environment,
            )  # fmt: skip
            limit_s += START_LIMIT_S
        line = self.exchange(json.dumps(request).encode() + b"\n", limit_s)
        answer = json.loads(line) if line is not None else {"error": self.reason(limit_s)}
        if "error" in answer:  # a GPU stays unusable to a process after some errors
            self.stop()
        return answer

    def exchange(self, data: bytes, limit_s: float) -> bytes | None:
        """Write a line and wait for one."""
        assert self.process is not None and self.process.stdin and self.process.stdout
        end, found = time.monotonic() + limit_s, b""
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except OSError:
            return None
        pipe = self.process.stdout.fileno()
        while not found.endswith(b"\n"):
            if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            part = os.read(pipe, 1 << 16)
            if not part:
                return None
            found += part
        return found

    def reason(self, limit_s: float) -> str:
        """Why there was no answer."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return f"stopped after its limit of {limit_s:g} s"
        return f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"

    def stop(self) -> None:
        """End the process; the next request starts a new one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


class Results:
    """The file of results: its head is the manifest, then one line for each candidate."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.head = {"bundle": manifest["id"], "manifest": manifest}
        self.rows: dict[tuple, dict[str, Any]] = {}
        if path.exists():
            self.read()

    def read(self) -> None:
        """Take what an earlier run measured; what failed is measured again."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                if row["bundle"] != self.head["bundle"]:
                    raise KeyError
                if "times_us" in row:
                    self.rows[self.key(row)] = row
            except (ValueError, KeyError, TypeError):
                msg = f"'{self.path}' is not of this bundle; give --results another name"
                raise Problem(msg) from None

    @staticmethod
    def key(row: dict[str, Any]) -> tuple:
        """Which measurement a row is of."""
        return row["task"], row["candidate"], bool(row.get("again"))

    def add(self, *rows: dict[str, Any]) -> None:
        """Write the file with more rows; it is replaced when it is complete."""
        for row in rows:
            full = {"bundle": self.head["bundle"], **row}
            self.rows[self.key(full)] = full
        temporary = self.path.with_name(self.path.name + ".tmp")
        lines = [json.dumps(row) for row in (self.head, *self.rows.values())]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def relative(self, task: int) -> dict[int, float]:
        """Times of a task's exact candidates over that of the start."""
        return {
            row["candidate"]: min(row["times_us"]) / min(row["start_us"])
            for row in self.rows.values()
            if row["task"] == task and row.get("checked") and not row.get("again")
        }


class Run:
    """Measures what is not in the results yet."""

    def __init__(self, manifest: dict[str, Any], results: Results, worker: Worker) -> None:
        self.manifest, self.results, self.worker = manifest, results, worker
        facts = worker.ask({}, START_LIMIT_S)
        if "error" in facts:
            raise Problem(facts["error"])
        self.facts = facts
        self.tasks = [
            i for i, task in enumerate(manifest["tasks"]) if runs_here(task["arch"], facts)
        ]
        if not self.tasks:
            archs = ", ".join(sorted({task["arch"] for task in manifest["tasks"]}))
            raise Problem(f"the bundle holds code for {archs}, the device is {facts['device']}")
        self.failures, self.worked = 0, bool(results.rows)

    def measure_all(self, limit_s: float) -> None:
        """Measure every candidate once, and the best of each task again."""
        for number, index in enumerate(self.tasks, 1):
            task = self.manifest["tasks"][index]
            print(f"[{number}/{len(self.tasks)}] {task['layer']}", flush=True)
            for candidate in range(len(task["candidates"])):
                if (index, candidate, False) not in self.results.rows:
                    self.measure(index, [candidate], self.manifest["search"], limit_s)
            relative = self.results.relative(index)
            best = sorted(relative, key=lambda i: relative[i])[:CONFIRMED]
            left = [i for i in best if (index, i, True) not in self.results.rows]
            if left:
                self.measure(index, best, self.manifest["confirm"], 2 * limit_s, again=True)

    def measure(
        self,
        index: int,
        candidates: list[int],
        timing: dict[str, Any],
        limit_s: float,
        again: bool = False,
    ) -> None:
        """Measure candidates of a task in turn with its start, and write what came of it."""
        task = self.manifest["tasks"][index]
        group = list(dict.fromkeys([task["start"], *candidates]))
        folders = [task["candidates"][i]["folder"] for i in group]
        answer = self.worker.ask({"case": task["case"], "groups": folders, **timing}, limit_s)
        common = {"task": index, **({"again": True} if again else {})}
        if "error" in answer:
            print(f"  candidate {candidates}: {answer['error']}", flush=True)
            rows = [{**common, "candidate": i, "error": answer["error"]} for i in candidates]
            self.results.add(*rows)
            self.failures += 1
            if self.failures >= GIVE_UP and not self.worked:
                raise Problem(f"{self.failures} candidates in a row failed: {answer['error']}")
            return
        self.worked = True
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 - Python 3.9
        found = dict(zip(group, zip(answer["times_us"], answer["exact"])))  # noqa: B905
        rows = [
            {
                **common,
                "candidate": i,
                "times_us": found[i][0],
                "start_us": found[task["start"]][0],
                "checked": found[i][1],
                "date": date,
                **self.facts,
            }
            for i in (group if again else candidates)
        ]
        self.results.add(*rows)


def runs_here(arch: str, facts: dict[str, Any]) -> bool:
    """Whether machine code of an arch runs on a device: same major version, no higher minor one."""
    if "device_arch" not in facts:
        return True
    built, here = int(arch[len("sm_") :]), facts["device_arch"]
    return bool(built // 10 == here // 10 and built <= here)


def read_manifest() -> dict[str, Any]:
    """What the bundle holds."""
    return json.loads((FOLDER / "bundle.json").read_text(encoding="utf-8"))


def check_machine(manifest: dict[str, Any]) -> None:
    """Refuse another version of apache-tvm-ffi, and a CPU without the instructions of the code."""
    wanted = manifest["tvm_ffi"]
    try:
        found = importlib.metadata.version("apache-tvm-ffi")
        importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError as error:
        msg = f"{error.name} is missing; run: pip install numpy apache-tvm-ffi=={wanted}"
        raise Problem(msg) from None
    if found != wanted:
        raise Problem(f"apache-tvm-ffi is {found}; run: pip install apache-tvm-ffi=={wanted}")
    flags = {flag.replace("_", "") for flag in cpu_info("flags").split()}
    flags |= {"bmi"} & {"bmi" if "bmi1" in flags else ""}
    missing = [name for name in manifest["features"] if name.replace("-", "") not in flags]
    if flags and missing:
        raise Problem(f"this CPU lacks {', '.join(missing)}, which the code uses")


def main() -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=FOLDER / "results.jsonl", metavar="FILE",
        help="what is written, and read where it exists; results.jsonl of this folder else",
    )  # fmt: skip
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a candidate may take")
    parser.add_argument("--threads", type=int, help="threads of CPU kernels")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve()
        return 0
    if options.limit <= 0 or (options.threads is not None and options.threads < 1):
        parser.error("--limit must be above 0, --threads at least 1")
    worker = Worker(options.threads)
    try:
        manifest = read_manifest()
        check_machine(manifest)
        results = Results(options.results, manifest)
        Run(manifest, results, worker).measure_all(options.limit)
    except (Problem, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; run again to go on. {options.results} is whole", file=sys.stderr)
        return 130
    finally:
        worker.stop()
    failed = sum("error" in row for row in results.rows.values())
    print(f"{results.path}: {len(results.rows) - failed} measurements, {failed} failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
