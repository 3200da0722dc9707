"""What a reader wants to know first: the best config by each measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm_q4.comparing.summary import cost
from tvm_q4.comparing.text import bytes_text, ratio_text

_GIGA = 1e9


def highlights(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Claim, config, value; of configs that are quantized and bit-exact or not checked.

    "Fastest that keeps accuracy" is within one standard error of the baseline's.
    """
    rows = [r for r in report["configs"] if r["kind"] != "float" and r["bit_exact"] is not False]
    out: list[tuple[str, str, str]] = []
    rated = [r for r in rows if r["accuracy"]]
    timed = [r for r in rows if r["latency"]]
    if rated:
        best = max(rated, key=lambda r: r["accuracy"]["top1"])
        out.append(("most accurate", best["name"], f"{best['accuracy']['top1']:.2%} top-1"))
    if timed:
        best = min(timed, key=lambda r: r["latency"]["median_ms"])
        out.append((f"fastest ({best['latency']['source']})", best["name"], _latency(best)))
    kept = [r for r in timed if _keeps_accuracy(r)]
    if kept:
        best = min(kept, key=lambda r: r["latency"]["median_ms"])
        out.append((f"fastest, as accurate as {report['baseline']}", best["name"], _latency(best)))
    if rows:
        best = min(rows, key=lambda r: cost(r, "weight_bytes") or 0)
        ratio = ratio_text(best["ratios"].get("weight_bytes"))
        out.append(("smallest weights", best["name"], f"{bytes_text(best['weight_bytes'])}{ratio}"))
        best = min(rows, key=lambda r: r["bops"])
        ratio = ratio_text(best["ratios"].get("bops"))
        out.append(("fewest bit operations", best["name"], f"{best['bops'] / _GIGA:.3g} G{ratio}"))
    return out


def _latency(row: Mapping[str, Any]) -> str:
    found = row["ratios"].get("latency")
    return f"{row['latency']['median_ms']:.4g} ms{ratio_text(found['median'] if found else None)}"


def _keeps_accuracy(row: Mapping[str, Any]) -> bool:
    change = row["accuracy_change"]
    return change is not None and change >= -float(row["accuracy"]["stderr"])
