"""Which task gets the next batch: the one that promises to save most time of the whole network.

A simple form of the gradient scheduler of Ansor (Zheng et al., OSDI 2020, section 6): what a batch
may save is the task's share of the network's time, times what its latest batches gained, mixed
with what a task at this point may still hide.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm_q4.tune.search import Search

_RECENT = 2
_TRUST = 0.5
"""Weight of what was seen, against what may be hoped for."""

_HOPE = 0.2
"""Relative gain that a task may be expected to hold; it sinks with every candidate measured."""


def next_search(searches: Sequence[Search]) -> Search | None:
    """The search that gets the next batch; None where all are finished."""
    alive = [s for s in searches if not s.finished]
    if not alive:
        return None
    fresh = [s for s in alive if s.start_us is None]
    if fresh:  # each layer once, the costliest by prediction first
        return max(fresh, key=lambda s: min(s.task.costs) * len(s.task.layers))
    return max(alive, key=promise)


def promise(search: Search) -> float:
    """Microseconds of the network that a batch for this task may be expected to save."""
    best = search.best_us
    assert best is not None
    recent = search.gains[-_RECENT:]
    seen = sum(recent) / len(recent) if recent else _HOPE
    hope = _HOPE * len(search.open) / len(search.task.space) / (1 + len(search.gains))
    return len(search.task.layers) * best * (_TRUST * seen + (1 - _TRUST) * hope)
