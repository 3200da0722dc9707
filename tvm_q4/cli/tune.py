"""``tvm-q4 tune``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import COUNT, IMAGE_SIZE, PATH, hawq_options
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console


@verb(
    "tune",
    example="""
    tvm-q4 tune model.pt2 --target llvm --minutes 10 --log cpu.jsonl
    tvm-q4 tune model.pt2 --tasks list
    tvm-q4 tune model.pt2 --target nvidia/nvidia-t4 --rpc 127.0.0.1:9190/t4 --log t4.jsonl
    tvm-q4 tune model.pt2 --target nvidia/nvidia-t4 --bundle t4     # there: python t4/run.py
    tvm-q4 tune --import t4/results.jsonl --log t4.jsonl
    tvm-q4 tune --best cpu.jsonl
    tvm-q4 tune --merge a.jsonl b.jsonl -o both.jsonl
    """,
)
@click.argument("arguments", nargs=-1, metavar="MODEL | LOG...")
@click.option("--target", help="As for compile; llvm (this CPU) where not given.")
@click.option("--batch", type=COUNT, help="Images a run; the model's own where not given.")
@click.option("--image-size", type=IMAGE_SIZE, help="Height and width of the input in pixels.")
@click.option("--log", type=PATH, metavar="FILE", help="Tuning log to continue or begin.")
@click.option(
    "--trials",
    type=COUNT,
    help="Candidates of all tasks, those in the log included; with --bundle, of each task.  "
    "[default: with --bundle, 16]",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Time of the run.")
@click.option(
    "--tasks",
    metavar="list|all|A,B",
    help="Show the tasks, or tune all or some, by number or layer.  [default: all]",
)
@click.option(
    "--early-stop",
    type=COUNT,
    metavar="N",
    help="A task is finished after N candidates without an improvement.  [default: 24]",
)
@click.option("--threads", type=COUNT, help="Threads of CPU kernels; those of libraries else.")
@click.option(
    "--rpc",
    metavar="HOST:PORT/KEY",
    help="Measure on all devices of KEY at TVM's tracker; KEY alone: at $TVM_TRACKER_HOST and "
    "$TVM_TRACKER_PORT.",
)
@click.option(
    "--bundle",
    type=PATH,
    metavar="DIR",
    help="Build candidates into a new folder, whose run.py measures them where the device is.",
)
@click.option(
    "--import",
    "results",
    type=PATH,
    metavar="RESULTS",
    help="Add what a bundle's run.py measured to --log.",
)
@hawq_options
@click.option("--best", is_flag=True, help="Show the best record of each signature of LOG.")
@click.option("--merge", is_flag=True, help="Write all records of LOG... to -o.")
@click.option("-o", "--output", type=PATH, metavar="FILE", help="What --merge writes.")
def command(
    options: Options,
    *,
    arguments: tuple[str, ...],
    results: Path | None,
    best: bool,
    merge: bool,
    output: Path | None,
    **tuning: Any,
) -> None:
    """Search for the fastest parameters of MODEL's layers by measuring them; or look into LOGs."""
    given = {name: value for name, value in tuning.items() if value is not None}
    wanted = {"--best": best, "--merge": merge, "--import": results is not None}
    modes = [name for name, wish in wanted.items() if wish]
    if len(modes) > 1:
        raise click.UsageError(f"{modes[0]} and {modes[1]} are two commands; give one")
    if not merge and output is not None:
        raise click.UsageError("-o goes with --merge; a search writes to --log")
    if not modes:
        run = _bundle if "bundle" in given else _tune
        run(options, _one(arguments, "MODEL"), given)
        return
    if results is not None:
        log = given.pop("log", None)
        _refuse("--import takes RESULTS and --log", given)
        _import(options, arguments, results, log)
        return
    _refuse(f"{modes[0]} takes logs", given)
    if best:
        _best(options, _one(arguments, "LOG"))
    else:
        _merge(options, arguments, output)


def _refuse(reason: str, given: Iterable[str]) -> None:
    """Refuse options that a command does not know."""
    for name in given:
        raise click.UsageError(f"{reason}; it does not go with --{name.replace('_', '-')}")


def _one(arguments: tuple[str, ...], what: str) -> str:
    if len(arguments) != 1:
        raise click.UsageError(f"give one {what}, found {len(arguments)}")
    return arguments[0]


def _tune(options: Options, model: str, given: dict[str, Any]) -> None:
    from tvm_q4.tune import list_tasks, tune_model

    if given.get("tasks") == "list":
        known = {"target", "batch", "image_size", "arch", "hawq_config", "hawq_rounding"}
        facts = {name: value for name, value in given.items() if name in known}
        found = list_tasks(model, seed=options.seed, **facts)
        options.emit({"tasks": found}, lambda console: _show_list(console, found))
        return
    if "log" not in given:
        raise click.UsageError("a search needs --log FILE for its records; or give --tasks list")
    result = tune_model(model, seed=options.seed, **given)
    options.emit(result, lambda console: _show(console, result))


def _bundle(options: Options, model: str, given: dict[str, Any]) -> None:
    from tvm_q4.tune import write_bundle

    elsewhere = {"minutes", "early_stop", "threads", "rpc"} & given.keys()
    _refuse("--bundle measures nothing here", sorted(elsewhere))
    output = given.pop("bundle")
    result = write_bundle(model, output, seed=options.seed, **given)
    line = (
        f"{output}: {result['candidates']} candidates of {result['tasks']} tasks, "
        f"{result['bytes'] / 1e6:.1f} MB; on the device, run: python {output.name}/run.py"
    )
    options.emit(result, lambda console: console.print(line, soft_wrap=True))


def _import(options: Options, arguments: tuple[str, ...], results: Path, log: Path | None) -> None:
    from tvm_q4.tune import import_results

    if arguments:
        raise click.UsageError(f"--import takes no MODEL, found {arguments[0]!r}")
    if log is None:
        raise click.UsageError("--import needs --log FILE for the records")
    result = import_results(results, log)
    line = (
        f"{log}: {result['records']} records added ({result['inexact']} not bit-exact); "
        f"{result['failed']} candidates failed, {result['duplicates']} were there already, "
        f"{result['skipped']} lines skipped"
    )
    options.emit(result, lambda console: console.print(line, soft_wrap=True))


def _best(options: Options, log: str) -> None:
    from tvm_q4.tuning_logs.reports import best_rows

    found = best_rows(log)
    options.emit({"log": log, "best": found}, lambda console: _show_best(console, found))


def _merge(options: Options, logs: tuple[str, ...], output: Path | None) -> None:
    from tvm_q4.tuning_logs.writing import merge_logs

    if output is None:
        raise click.UsageError("--merge needs -o FILE for its result")
    result = merge_logs(logs, output)
    line = f"{output}: {result['records']} records, {result['duplicates']} equal lines left out"
    options.emit(result, lambda console: console.print(line, soft_wrap=True))


def _show_list(console: Console, tasks: list[dict[str, Any]]) -> None:
    for task in tasks:
        count = f" x{len(task['layers'])}" if len(task["layers"]) > 1 else ""
        head = f"{task['index']:3d}  {task['layers'][0]}{count}  {task['settings']} settings"
        console.print(f"{head}  {task['arch']}  {task['signature']}", soft_wrap=True)


def _show(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("task", "layer"):
        table.add_column(name)
    for name in ("layers", "trials", "start us", "best us", "gain"):
        table.add_column(name, justify="right")
    table.add_column("parameters")
    for row in result["tasks"]:
        table.add_row(str(row["index"]), row["layers"][0], *_numbers(row), _params(row))
    console.print(table)
    console.print(
        f"{result['measured']} candidates measured in {result['seconds']:.0f} s on "
        f"{result['device']}; {result['log']} has {result['trials']} for this model",
        soft_wrap=True,
    )
    if result["best_us"]:
        start, best = result["start_us"], result["best_us"]
        console.print(f"sum of tuned layers: {start:.0f} us to {best:.0f} us ({start / best:.3f}x)")


def _numbers(row: dict[str, Any]) -> list[str]:
    counts = [str(len(row["layers"])), f"{row['trials']}/{row['settings']}"]
    if row["best_us"] is None:
        return [*counts, "", "", ""]
    gain = row["start_us"] / row["best_us"]
    return [*counts, f"{row['start_us']:.1f}", f"{row['best_us']:.1f}", f"{gain:.3f}x"]


def _params(row: dict[str, Any]) -> str:
    params = row["best_params"] or {}
    return " ".join(f"{name}={value}" for name, value in params.items())


def _show_best(console: Console, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        params = " ".join(f"{name}={value}" for name, value in row["params"].items())
        again = "" if row["again"] else " (measured once)"
        console.print(
            f"{row['arch']}  {row['time_us']:.1f} us{again}  {row['rule']} {params}  "
            f"{row['signature']}",
            soft_wrap=True,
        )
