"""What a search has found, as a line for people and as JSON."""

from __future__ import annotations

from typing import Any

from tvm_q4.tune.search import Search


def describe(search: Search) -> str:
    """A task's state in one line, for the progress bar."""
    task = search.task
    on_gpu = task.target.kind.name == "cuda"
    predicted = f", predicted {min(task.costs):.1f} us" if on_gpu else ""
    if search.best_us is None or search.start_us is None:
        return f"{task.name}{predicted}"
    gain = search.start_us / search.best_us
    best, start = search.best_us, search.start_us
    return f"{task.name}: best {best:.1f} us, start {start:.1f} us ({gain:.2f}x){predicted}"


def summary(search: Search) -> dict[str, Any]:
    """What a run found out about a task, as JSON."""
    task, best = search.task, search.best
    return {
        "index": task.index,
        "layers": list(task.layers),
        "signature": task.signature,
        "arch": task.arch,
        "rule": task.rule.name,
        "settings": len(task.space),
        "trials": search.trials,
        "failed": len(search.failed),
        "predicted_us": min(task.costs) if task.target.kind.name == "cuda" else None,
        "start_us": search.start_us,
        "start_params": task.space[task.start],
        "best_us": search.best_us,
        "best_params": task.space[best] if best is not None else None,
        "confirmed": best is not None and search.confirmed == best,
    }
