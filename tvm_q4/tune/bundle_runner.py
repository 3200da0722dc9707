"""Measures the candidates of this folder on this machine: ``python run.py``.

It needs Python, NumPy and apache-tvm-ffi (the version that it names where another one is
installed); TVM's runtime lies in ``lib``. A GPU needs its driver and ``libcudart.so.13`` besides
(``pip install "nvidia-cuda-runtime==13.*"``), and no compiler. What it finds goes into
``results.jsonl``, which is whole at any moment: end the program when you like, and start it again
to go on. Bring the file back and read it with ``tvm-q4 tune --import results.jsonl --log FILE``.

Every candidate is compared with the expected outputs, bit for bit, and timed in turn with the
candidate that would be compiled without measuring. They run in a process of their own
(``measure.py``), which is killed when it crashes or takes too long, and started again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import select
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
START_LIMIT_S = 120.0
CONFIRMED = 3
"""How many of a layer's best candidates are measured again beside its start."""

GIVE_UP = 3
"""Failures in a row, before anything worked, after which the program ends."""


class Problem(Exception):
    """What the user is told in one line."""


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
                [sys.executable, str(FOLDER / "measure.py")],
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
            row["candidate"]: low_us(row["times_us"]) / low_us(row["start_us"])
            for row in self.rows.values()
            if row["task"] == task and row.get("checked") and not row.get("again")
        }


def low_us(times: list[float]) -> float:
    """Lower quartile of samples, by which tuning compares candidates."""
    return sorted(times)[len(times) // 4]


class Run:
    """Measures what is not in the results yet."""

    def __init__(self, manifest: dict[str, Any], results: Results, worker: Worker) -> None:
        self.manifest, self.results, self.worker = manifest, results, worker
        opening = {key: manifest[key] for key in ("kind", "features")}
        facts = worker.ask(opening, START_LIMIT_S)
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
        request = {"kind": self.manifest["kind"], "case": task["case"], "folders": folders}
        answer = self.worker.ask({**request, **timing}, limit_s)
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


def check_packages(manifest: dict[str, Any]) -> None:
    """Refuse another version of apache-tvm-ffi."""
    wanted = manifest["tvm_ffi"]
    try:
        found = importlib.metadata.version("apache-tvm-ffi")
        importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError as error:
        msg = f"{error.name} is missing; run: pip install numpy apache-tvm-ffi=={wanted}"
        raise Problem(msg) from None
    if found != wanted:
        raise Problem(f"apache-tvm-ffi is {found}; run: pip install apache-tvm-ffi=={wanted}")


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
    options = parser.parse_args()
    if options.limit <= 0 or (options.threads is not None and options.threads < 1):
        parser.error("--limit must be above 0, --threads at least 1")
    worker = Worker(options.threads)
    try:
        manifest = read_manifest()
        check_packages(manifest)
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
