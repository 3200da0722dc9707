"""``tvm-q4 doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm_q4.cli.verb import Options, verb
from tvm_q4.library.nvcc import INSTALL

if TYPE_CHECKING:
    from rich.console import Console


@verb("doctor", example="tvm-q4 doctor")
def command(options: Options) -> int:
    """Report versions, the TVM / tvm-ffi pair, compilers, CPU, GPU and what each target can do.

    Exits with 1 where models cannot be compiled for this CPU.
    """
    from tvm_q4.environment import doctor

    report = doctor()
    options.emit(report, lambda console: _show(console, report))
    return 0 if report["ok"] else 1


def _show(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, version in report["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_row("TVM / tvm-ffi pair", "tested together" if report["ffi_pair_ok"] else "WRONG")
    for name, compiler in report["compilers"].items():
        table.add_row(name, _program(name, compiler))
    cpu = report["cpu"]
    has = [name for name, there in cpu["features"].items() if there]
    name = cpu["name"] + (f" ({cpu['mcpu']})" if "mcpu" in cpu else "")
    table.add_row("CPU", f"{name}, {cpu['cores']} cores, {' '.join(has) or 'no known features'}")
    for gpu in report["gpus"]:
        text = (
            f"{gpu['name']}, compute capability {gpu['compute_capability']}, driver {gpu['driver']}"
        )
        table.add_row("GPU", text)
    if not report["gpus"]:
        table.add_row("GPU", "none")
    table.add_row("CUDA", report["cuda"] or "ready")
    for name, target in report["targets"].items():
        can = [what for what in ("compile", "run") if target[what]]
        table.add_row(f"target {name}", f"{' and '.join(can) or 'unavailable'}: {target['note']}")
    console.print(table)
    for problem in report["problems"]:
        console.print(f"problem: {problem}", soft_wrap=True)


def _program(name: str, found: dict[str, str] | None) -> str:
    if found:
        return f"{found['version']} ({found['path']}, from {found['found']})"
    return "not found" if name == "c++" else f"not found; run: {INSTALL}"
