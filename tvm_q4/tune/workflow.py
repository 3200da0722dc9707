"""The verb ``tune``: from a model and a target to records in a tuning log."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import tvm
from tvm.target import Target

from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import InputError, TargetError
from tvm_q4.progress import ProgressBar
from tvm_q4.relay_passes.pipeline import to_fused, to_integer
from tvm_q4.targets import as_target, cpu_target, target_arch
from tvm_q4.tune.builder import Builder
from tvm_q4.tune.candidates import Candidates
from tvm_q4.tune.cost_model import require_xgboost
from tvm_q4.tune.measurer import LocalMeasurer, Measurer
from tvm_q4.tune.rpc_job import Server
from tvm_q4.tune.rpc_measurer import RpcMeasurer, check_listening, parse_rpc
from tvm_q4.tune.search import SearchOptions
from tvm_q4.tune.session import Budget, Session
from tvm_q4.tune.summary import summary
from tvm_q4.tune.task import Task, choose_tasks, extract_tasks
from tvm_q4.tuning_logs.records import Record, read_log
from tvm_q4.tuning_logs.writing import check_appendable
from tvm_q4.variants import variants

logger = logging.getLogger(__name__)


def load_tasks(
    model: str | Path | tvm.IRModule,
    target: str | Target | CudaTarget,
    tasks: str,
    **options: Any,
) -> list[Task]:
    """The tasks of a model for a target; `options` are those of `tvm_q4.load_model`.

    Raises
    ------
    Q4Error
        For anything wrong with the model, the target or the names of the tasks.
    """
    resolved = as_target(target)
    if isinstance(model, tvm.IRModule):
        mod = model
    else:
        from tvm_q4.frontend import load_model

        mod = load_model(model, require_quantized=True, **options)
    fused = to_fused(to_integer(mod))
    found = extract_tasks(fused, variants(resolved))
    if not found:
        logger.warning("no layer of the model has parameters to choose for %s", resolved)
    return choose_tasks(found, tasks)


def list_tasks(
    model: str | Path | tvm.IRModule,
    *,
    target: str | Target | CudaTarget = "llvm",
    tasks: str = "all",
    **options: Any,
) -> list[dict[str, Any]]:
    """What `tune_model` would tune: for each task its number, layers, signature and settings.

    Parameters
    ----------
    model, target
        As for `tvm_q4.compile`.
    tasks : str
        As for `tune_model`.
    **options
        ``batch``, ``image_size``, ``seed`` and the like, as for `tvm_q4.load_model`.
    """
    return [
        {
            "index": task.index,
            "layers": list(task.layers),
            "signature": task.signature,
            "arch": task.arch,
            "rule": task.rule.name,
            "settings": len(task.space),
            "start_params": task.space[task.start],
        }
        for task in load_tasks(model, target, tasks, **options)
    ]


def tune_model(
    model: str | Path | tvm.IRModule,
    *,
    log: str | Path,
    target: str | Target | CudaTarget = "llvm",
    tasks: str = "all",
    trials: int | None = None,
    minutes: float | None = None,
    early_stop: int = 24,
    threads: int | None = None,
    rpc: str | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Search for the fastest parameters of a model's layers by measuring them.

    Every candidate is compared with the reference executor, bit for bit. Records are appended to
    the log batch by batch, so that a run can be ended at any moment; the same call continues it.

    Parameters
    ----------
    model, target
        As for `tvm_q4.compile`.
    log : path
        File of JSON lines; made where it does not exist. What it holds is not measured again.
    tasks : str
        ``all``, or numbers of tasks and names of layers with commas between.
    trials : int, optional
        Candidates of all tasks together, those in the log included. Where neither this nor
        `minutes` is given, each task is searched until `early_stop`.
    minutes : float, optional
        Time of the run.
    early_stop : int
        Candidates of a task without an improvement after which it is finished.
    threads : int, optional
        Threads of CPU kernels; as many as libraries take where None.
    rpc : str, optional
        Tracker and key of devices elsewhere, ``HOST:PORT/KEY``, which are measured on side by side
        (see `tvm_q4.tune.rpc_measurer`); this machine's device where None.
    seed : int
        Of random weights, inputs and draws.
    **options
        ``batch``, ``image_size`` and the like, as for `tvm_q4.load_model`.

    Returns
    -------
    dict
        ``log``, ``target``, ``device``, ``tasks`` (see `tvm_q4.tune.summary.summary`), ``trials``
        (of all tasks), ``measured`` (of this run), ``seconds``, and ``start_us`` and ``best_us``:
        sums over the model's tuned layers, None while a task has no time.

    Raises
    ------
    InputError
        If a number is out of range, a task does not exist, or the log cannot be used.
    TargetError
        If this machine does not have the device, or no tracker and no device answer.
    EnvironmentMismatch
        If the ``tune`` extra is not installed.
    """
    _check(trials, minutes, early_stop, threads)
    check_appendable(log)
    require_xgboost()
    resolved = as_target(target)
    open_device = find_device(resolved, threads, rpc)
    records = read_records(log)
    begin = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm_q4_tune_")))
        candidates = Candidates(
            stack.enter_context(Builder(folder)),
            stack.enter_context(open_device()),
            folder,
            seed,
        )
        # Workers import TVM while the model is read.
        chosen = load_tasks(model, resolved, tasks, seed=seed, **options)
        how = SearchOptions(early_stop=early_stop)
        session = Session(chosen, candidates, Path(log), how, seed=seed)
        return run_session(session, records, trials, minutes, begin) | {"target": str(resolved)}


def run_session(
    session: Session,
    records: list[Record],
    trials: int | None,
    minutes: float | None,
    begin: float,
) -> dict[str, Any]:
    """Run a session with what its log holds, and say what it found; see `tune_model`."""
    session.resume(records)
    known = session.trials
    most = sum(len(task.space) for task in session.tasks)
    total = most if trials is None else min(trials, most)
    seconds = None if minutes is None else max(0.0, 60 * minutes - (time.monotonic() - begin))
    with ProgressBar("tune", max(total, known)) as bar:
        bar.advance(known)
        session.run(Budget(trials, seconds), bar)
    rows = [summary(search) for search in session.searches]
    return {
        "log": str(session.log),
        "device": session.candidates.measurer.facts["device"],
        "tasks": rows,
        "trials": session.trials,
        "measured": session.trials - known,
        "seconds": time.monotonic() - begin,
        "start_us": _network(rows, "start_us"),
        "best_us": _network(rows, "best_us"),
    }


def _network(rows: list[dict[str, Any]], key: str) -> float | None:
    """Time of all tuned layers of the network."""
    times = [(row[key], len(row["layers"])) for row in rows]
    if any(us is None for us, _ in times):
        return None
    return float(sum(us * count for us, count in times))


def read_records(log: str | Path) -> list[Record]:
    """Records of a log that may not exist yet."""
    return list(read_log(log)) if Path(log).exists() else []


def find_device(
    target: Target | CudaTarget, threads: int | None, rpc: str | None
) -> Callable[[], AbstractContextManager[Measurer]]:
    """What opens the device that `tune_model` measures on; what can be refused at once is.

    Raises
    ------
    InputError, TargetError
        If the device is not here, `rpc` has a wrong form, or no tracker listens there.
    """
    if rpc is None:
        kind = local_device(target)
        return lambda: LocalMeasurer(kind, threads)
    server = parse_rpc(rpc)
    check_listening(server)
    return lambda: _remote_device(target, server, threads)


def _remote_device(target: Target | CudaTarget, server: Server, threads: int | None) -> RpcMeasurer:
    if not isinstance(target, CudaTarget):
        return RpcMeasurer(server, "cpu", threads)
    measurer = RpcMeasurer(server, "cuda")
    try:
        facts = measurer.facts
        _check_family(target, int(facts["device_arch"]), str(facts["device"]))
    except TargetError:
        measurer.__exit__()
        raise
    return measurer


def local_device(target: Target | CudaTarget) -> str:
    """The device of this machine that kernels of a target are measured on: "cpu" or "cuda".

    Raises
    ------
    TargetError
        If there is no such device here.
    """
    if isinstance(target, CudaTarget):
        _check_gpu(target)
        return "cuda"
    here, there = target_arch(cpu_target()), target_arch(target)
    if here != there:
        msg = f"candidates for the CPU {there!r} cannot be measured here, on {here!r}"
        raise TargetError(f"{msg}; {ELSEWHERE}")
    return "cpu"


ELSEWHERE = "tune where that device is, or use --rpc HOST:PORT/KEY or --bundle DIR"
"""What to do about a device that is not here."""


def _check_gpu(target: CudaTarget) -> None:
    from tvm_q4.errors import LibraryError
    from tvm_q4.library.cuda_device import open_device

    try:
        gpu = open_device()
    except LibraryError as error:
        raise TargetError(f"{target} cannot be measured here: {error}; {ELSEWHERE}") from None
    _check_family(target, gpu.arch, str(gpu))


def _check_family(target: CudaTarget, arch: int, gpu: str) -> None:
    """Refuse a target whose kernels are not those that a GPU of `arch` runs."""
    from tvm_q4.cuda_target import family_of_arch

    foreign = [a for a in target.archs if family_of_arch(a) != family_of_arch(arch)]
    if foreign or len(target.families()) > 1:
        msg = f"{target} cannot be measured on {gpu}: one arch of its own family can"
        raise TargetError(f"{msg}; {ELSEWHERE}")


def _check(trials: int | None, minutes: float | None, early_stop: int, threads: int | None) -> None:
    limits = {"trials": trials, "early_stop": early_stop, "threads": threads}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes is {minutes}; it must be above 0")
