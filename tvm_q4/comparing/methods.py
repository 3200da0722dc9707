"""How each number of a report was obtained, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm_q4.comparing.text import DASH

_SOURCES = {"measured": "from the tuning log", "fallback": "fixed"}
"""Words for the ``source`` of a layer in a library's metadata."""


def method_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Config, how it was quantized, where its accuracy and its latency come from."""
    return [(r["name"], r["how"], _accuracy(r), _latency(r)) for r in report["configs"]]


def method_text(report: Mapping[str, Any]) -> list[str]:
    """What holds for all configs."""
    rows = report["configs"]
    lines = [
        "BOPs: multiplications times weight bits times activation bits, for one image. Weights: "
        "bytes in the library as its kernels read them (padding included), and params times bits "
        "divided by 8."
    ]
    if any(row["latency"] and row["latency"]["source"] == "measured" for row in rows):
        lines.append(
            f"Latency: libraries ran in turn in one process, {report['rounds']} rounds; median, "
            "p10 and p90 are over all calls. A ratio is the median of the rounds' ratios, with the "
            "least and the largest round in brackets. A call takes a batch that lies ready in "
            "memory and includes the quantization of the input."
        )
    if any(row["accuracy"] for row in rows):
        lines.append(
            "Accuracy: all configs saw the same images, so differences between configs are more "
            "certain than the standard error of each, sqrt(p (1 - p) / n), says."
        )
    if any(row["bit_exact"] for row in rows):
        lines.append(
            "Verified: every tensor that the library stores equals the reference executor's, bit "
            "for bit, on random images over the whole input range."
        )
    return lines


def _kernels(counts: Mapping[str, int]) -> str:
    """What decided the parameters of so many layers' kernels."""
    return ", ".join(f"{_SOURCES.get(key, key)} for {n}" for key, n in counts.items())


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _accuracy(row: Mapping[str, Any]) -> str:
    found = row["accuracy"]
    if found is None:
        return DASH
    return f"{found['source']}: {found['correct']} of {found['n']} images right, {found['how']}"


def _latency(row: Mapping[str, Any]) -> str:
    found = row["latency"]
    if found is None:
        return DASH
    if found["source"] == "measured":
        device = found["device"]
        threads = (
            f", {_count(found['threads'], 'thread')}" if found["timer"] == "wall clock" else ""
        )
        return (
            f"measured: {found['n']} calls on {device}{threads}, {found['timer']}; "
            f"kernels' parameters {_kernels(row['kernels'])}"
        )
    log, rules = found["layers_from_log"], found["layers_predicted"]
    return (
        f"predicted for {found['device']}, not measured: sum of {rules} predicted layers and {log} "
        "from the tuning log; pools, input quantization and launches are left out"
    )
