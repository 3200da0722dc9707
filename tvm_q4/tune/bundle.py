"""Bundles: candidates built here for a device that no network reaches.

A bundle is one folder that holds all that measuring needs, and no source: ``run.py`` (its text says
what it needs; see `bundle_runner`) with ``measure.py`` (`bundle_worker`), TVM's runtime in ``lib``,
built candidates in ``kernels``, inputs and expected outputs in ``cases``, and ``bundle.json``::

    format, id         of the bundle: 1, and a digest of all the rest
    kind, target       "cpu" or "cuda"; what was given as target
    tvm, tvm_ffi, tvm_q4   versions that built it
    features           extensions that a CPU must have, by LLVM's names
    search, confirm    how candidates are timed, and the best ones again
    tasks              layer, arch, signature, rule, case, start and candidates (params, folder)
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tvm
from tvm.target import Target

from tvm_q4 import __version__
from tvm_q4._compat import find_libtvm_runtime, llvm_get_cpu_features
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import CheckFailed, InputError
from tvm_q4.library.host import missing_features
from tvm_q4.progress import ProgressBar
from tvm_q4.targets import as_target
from tvm_q4.tune import bundle_runner, bundle_worker
from tvm_q4.tune.builder import Builder
from tvm_q4.tune.case import make_case
from tvm_q4.tune.cost_model import require_xgboost
from tvm_q4.tune.kernel_file import Kernel
from tvm_q4.tune.proposer import Proposer
from tvm_q4.tune.search import SearchOptions
from tvm_q4.tune.session import Timings
from tvm_q4.tune.task import Task
from tvm_q4.tune.workflow import load_tasks, read_records
from tvm_q4.tuning_logs.records import Record

FORMAT = 1
_RUNTIME = "libtvm_runtime.so"
_CUDA_RUNTIME = "libtvm_runtime_cuda.so"


def write_bundle(
    model: str | Path | tvm.IRModule,
    output: str | Path,
    *,
    target: str | Target | CudaTarget = "llvm",
    tasks: str = "all",
    trials: int = 16,
    log: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Build candidates of a model's layers into a folder that measures them where the device is.

    Parameters
    ----------
    model, target
        As for `tvm_q4.compile`; the device need not be here, nor for CUDA a GPU.
    output : path
        The folder; it appears when it is complete, and must not exist.
    tasks : str
        As for `tvm_q4.tune.tune_model`.
    trials : int
        Candidates of each task: the start, then by prediction, and a share at random.
    log : path, optional
        Tuning log: what it holds is not built again, and teaches which candidates to take. A task
        whose candidates it holds all is left out.
    seed : int
        Of random weights, inputs and draws.
    **options
        ``batch``, ``image_size`` and the like, as for `tvm_q4.load_model`.

    Returns
    -------
    dict
        ``bundle`` (path), ``id``, ``target``, ``tasks`` and ``candidates`` (numbers of both),
        ``failed`` (not built) and ``bytes``.

    Raises
    ------
    InputError
        If `output` cannot be written, an argument is wrong, or there is nothing to measure.
    CheckFailed
        If the default kernel of a layer cannot be built.
    EnvironmentMismatch
        If the ``tune`` extra is not installed, or a tool to build with.
    """
    if trials < 1:
        raise InputError(f"trials is {trials}; it must be at least 1")
    require_xgboost()
    resolved, path = as_target(target), Path(output)
    check_bundle_path(path)
    records = read_records(log) if log is not None else []
    chosen = load_tasks(model, resolved, tasks, seed=seed, **options)
    with _appearing(path) as folder:
        rows, failed = _build(chosen, folder, records, trials, seed)
        if not rows:
            raise InputError("there is no candidate to measure that the log does not hold")
        kind = "cuda" if isinstance(resolved, CudaTarget) else "cpu"
        _copy_runtime(folder, kind)
        manifest = _manifest(kind, resolved, rows)
        text = json.dumps(manifest, indent=1)
        (folder / "bundle.json").write_text(text, encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "bundle": str(path),
        "id": manifest["id"],
        "target": str(resolved),
        "tasks": len(rows),
        "candidates": sum(len(row["candidates"]) for row in rows),
        "failed": failed,
        "bytes": size,
    }


def check_bundle_path(output: Path) -> None:
    """Make sure that a bundle can be written, before any work is done.

    Raises
    ------
    InputError
        If something has its name already, or its parent is no folder that can be written to.
    """
    if output.exists() or output.is_symlink():
        raise InputError(f"bundle '{output}' exists already; give --bundle a new name")
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        msg = f"bundle '{output}' cannot be written: {error.strerror}; choose another folder"
        raise InputError(msg) from None


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name on success only."""
    check_bundle_path(output)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as work:
            folder = Path(work) / "bundle"
            folder.mkdir()
            yield folder
            folder.rename(output)
    except OSError as error:
        msg = f"bundle '{output}' cannot be written: {error.strerror}; choose another folder"
        raise InputError(msg) from None


def _build(
    tasks: list[Task], folder: Path, records: list[Record], trials: int, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """Kernels and cases of all tasks; returns their entries and how many were not built."""
    proposer = Proposer(tasks, SearchOptions(), seed)
    proposer.resume(records)
    rows, failed = [], 0
    for part in ("kernels", "cases"):
        (folder / part).mkdir()
    with (
        tempfile.TemporaryDirectory(prefix="tvm_q4_bundle_") as work,
        Builder(Path(work)) as builder,
        ProgressBar("bundle", len(tasks)) as bar,
    ):
        for number, search in enumerate(proposer.searches):
            task = search.task
            bar.step(task.name)
            chosen = proposer.propose(search, trials)
            if chosen:
                indices = list(dict.fromkeys([task.start, *chosen]))
                built = builder.build(task, [task.space[i] for i in indices])
                if not isinstance(built[0], Kernel):
                    reason = built[0].reason
                    raise CheckFailed(f"layer {task.name!r}: its default kernel fails: {reason}")
                candidates = []
                for i, kernel in zip(indices, built, strict=True):
                    if isinstance(kernel, Kernel):
                        name = f"kernels/{number}_{i}"
                        shutil.move(kernel.folder, folder / name)
                        candidates.append({"params": task.space[i], "folder": name})
                failed += len(indices) - len(candidates)
                case = f"cases/{number}.npz"
                make_case(task.fused, task.layer, seed).save(folder / case)
                rows.append(_task_entry(task, case, candidates))
            bar.advance()
    return rows, failed


def _task_entry(task: Task, case: str, candidates: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "layer": task.name,
        "arch": task.arch,
        "signature": task.signature,
        "rule": task.rule.name,
        "case": case,
        "start": 0,
        "candidates": candidates,
    }


def _copy_runtime(folder: Path, kind: str) -> None:
    (folder / "lib").mkdir()
    runtime = Path(find_libtvm_runtime())
    for name in (_RUNTIME, _CUDA_RUNTIME)[: 2 if kind == "cuda" else 1]:
        shutil.copyfile(runtime.with_name(name), folder / "lib" / name)
    shutil.copyfile(bundle_runner.__file__, folder / "run.py")
    shutil.copyfile(bundle_worker.__file__, folder / "measure.py")


def _manifest(
    kind: str, target: Target | CudaTarget, tasks: list[dict[str, Any]]
) -> dict[str, Any]:
    timings = Timings()
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "target": str(target),
        "tvm": version("apache-tvm"),
        "tvm_ffi": version("apache-tvm-ffi"),
        "tvm_q4": __version__,
        "features": [] if isinstance(target, CudaTarget) else _features(target),
        "search": asdict(timings.search),
        "confirm": asdict(timings.confirm),
        "tasks": tasks,
    }
    return {"id": bundle_id(manifest), **manifest}


def bundle_id(manifest: dict[str, Any]) -> str:
    """Digest of all that a manifest says but its id."""
    rest = {key: value for key, value in manifest.items() if key != "id"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def _features(target: tvm.target.Target) -> list[str]:
    """Extensions that code of a CPU's target may use, and that decide whether it runs."""
    if not target.attrs.get("mcpu"):
        return []
    return missing_features({str(f) for f in llvm_get_cpu_features(target)}, frozenset())
