"""Numbers as the page and the command line print them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KILO = 1000
DASH = "-"


def bytes_text(count: float | None) -> str:
    """``412 kB``, ``1.29 MB``; a dash for nothing."""
    if count is None:
        return DASH
    if count < _KILO * _KILO:
        return f"{count / _KILO:.4g} kB"
    return f"{count / _KILO / _KILO:.4g} MB"


def ratio_text(ratio: float | None) -> str:
    """``, 0.52x``; empty for nothing."""
    return "" if ratio is None else f", {ratio:.2f}x"


def latency_range(latency: Mapping[str, Any]) -> str:
    """p10 to p90, or that the latency is predicted."""
    if latency["source"] != "measured":
        return str(latency["source"])
    return f"{latency['p10_ms']:.4g} to {latency['p90_ms']:.4g}"


def spread_text(ratio: Mapping[str, Any] | None) -> str:
    """``0.93x (0.91..0.95)``: the median of the rounds' ratios and their range."""
    if ratio is None:
        return ""
    text = f"{ratio['median']:.2f}x"
    return text if ratio["low"] is None else f"{text} ({ratio['low']:.2f}..{ratio['high']:.2f})"


def verified_text(bit_exact: bool | None) -> str:
    """What `verify` found."""
    return {True: "bit-exact", False: "NOT bit-exact", None: DASH}[bit_exact]
