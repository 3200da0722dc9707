"""The tuning benchmark's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuning_statistics import SHARE, summary

from tvm_q4.tuning_logs.records import low_us

_HEAD = (
    "layer",
    "settings",
    "predicted us",
    "ours us",
    "gain",
    f"trials to {SHARE:.0%}: ours",
    "random (median)",
    "seconds: ours",
    "MetaSchedule us, equal seconds",
    "MetaSchedule us, at its end",
    "its trials",
    "its seconds",
    "its end / ours",
)


def markdown(rows: Mapping[str, Mapping[str, Any]], trials: int) -> str:
    """One line a layer; times are lower quartiles of kernels timed in turn, as in tuning logs."""
    lines = [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
    lines += [f"| {' | '.join(_cells(name, row))} |" for name, row in rows.items()]
    return "\n".join([*lines, "", f"Budget: {trials} trials a layer."])


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    us = {key: low_us(times) for key, times in row["final"].items()}
    counts, peer = summary(row), row["metaschedule"]
    random = counts["trials_random"]
    return [
        name,
        str(row["settings"]),
        f"{us['start']:.1f}",
        f"{us['best']:.1f}",
        f"{us['start'] / us['best']:.3f}",
        str(counts["trials_ours"]),
        f"> {counts['random_of']}" if random is None else f"{random:g}",
        f"{row['ours']['seconds']:.0f}",
        _us(us.get("equal")),
        _us(us.get("final")),
        str(len(peer["curve"])),
        f"{peer['seconds']:.0f}",
        f"{us['final'] / us['best']:.2f}" if "final" in us else "-",
    ]


def _us(value: float | None) -> str:
    """A time, or that nothing was measured by then."""
    return "none yet" if value is None else f"{value:.1f}"
