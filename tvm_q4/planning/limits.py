"""Limits and fixed layers as users write them: ``size=0.5``, ``latency_ms=4.2``, ``conv1=8``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tvm_q4.errors import InputError
from tvm_q4.planning.problem import exact

FRACTIONS = {"size": "size_bytes", "bops": "bops_total", "latency": "latency_ms"}
"""Limits that are a share of the way from all 4 to all 8 bits, and the costs that they limit."""

UNITS = {"size_bytes": "bytes", "bops_total": "BOPs", "latency_ms": "ms"}
CHOICES = ("8", "w4a8", "4")
"""Precisions that a layer can take, with fewer bits from left to right."""


@dataclass(frozen=True)
class Limit:
    """A limit as it was given.

    Parameters
    ----------
    name : str
        ``size``, ``bops``, ``latency``, or a cost.
    value : Fraction
    """

    name: str
    value: Fraction

    @property
    def cost(self) -> str:
        """Cost that is limited: a key of `UNITS`."""
        return FRACTIONS.get(self.name, self.name)

    def __str__(self) -> str:
        return f"{self.name}={float(self.value):g}"


def parse_limits(given: Mapping[str, float] | Iterable[str]) -> list[Limit]:
    """Return limits from ``{"size": 0.5}`` or ``["size=0.5"]``.

    Raises
    ------
    InputError
        If a name is unknown, a value is no number or negative, or two limits are on one cost.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name), str(value)) for name, value in given.items()]
    else:
        pairs = [_pair(text, "limit", "size=0.5") for text in _strings(given)]
    limits: list[Limit] = []
    for name, text in pairs:
        if name not in (*FRACTIONS, *UNITS):
            known = ", ".join((*FRACTIONS, *UNITS))
            raise InputError(f"limit '{name}' is unknown; there are {known}")
        limit = Limit(name, _value(name, text))
        for other in limits:
            if other.cost == limit.cost:
                raise InputError(f"'{other}' and '{limit}' limit the same cost; give one of them")
        limits.append(limit)
    return limits


def parse_fixes(
    given: Mapping[str, object] | Iterable[str], names: Sequence[str]
) -> dict[str, str]:
    """Return the precision of held layers from ``{"conv1": 8}`` or ``["conv1=8"]``.

    Parameters
    ----------
    given : mapping or iterable of str
    names : sequence of str
        Layers that there are.

    Raises
    ------
    InputError
        If a layer or a precision is unknown, or a layer is held at two.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name), str(bits)) for name, bits in given.items()]
    else:
        pairs = [_pair(text, "fixed layer", "layer1.0.conv1=8") for text in _strings(given)]
    found: dict[str, str] = {}
    for name, bits in pairs:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = (
                f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names[:3])}, ..."
            )
            raise InputError(f"layer '{name}' to fix is not in the table; {hint}")
        if bits not in CHOICES:
            raise InputError(f"layer '{name}' is to be fixed at '{bits}'; write 8, 4 or w4a8")
        if found.setdefault(name, bits) != bits:
            raise InputError(f"layer '{name}' is to be fixed at {found[name]} and at {bits}")
    return found


def parse_choices(given: str | Iterable[object]) -> tuple[str, ...]:
    """Return precisions from ``"4,8,w4a8"`` or a list, more bits first.

    Raises
    ------
    InputError
        If one is unknown or none is there.
    """
    items = given.split(",") if isinstance(given, str) else [str(item) for item in given]
    found = [item.strip() for item in items]
    for item in found:
        if item not in CHOICES:
            raise InputError(f"choice '{item}' is unknown; write some of 4,8,w4a8")
    if not found:
        raise InputError("there are no choices; write some of 4,8,w4a8")
    return tuple(choice for choice in CHOICES if choice in found)


def _strings(given: Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _pair(text: str, what: str, example: str) -> tuple[str, str]:
    name, sign, value = text.rpartition("=")
    if not sign or not name.strip():
        raise InputError(f"{what} '{text}' is not NAME=VALUE, such as {example}")
    return name.strip(), value.strip()


def _value(name: str, text: str) -> Fraction:
    try:
        value = exact(float(text)) if text not in ("True", "False") else None
    except (ValueError, OverflowError):
        value = None
    if value is None or value < 0:
        kind = "a fraction such as 0.5" if name in FRACTIONS else f"a number of {UNITS[name]}"
        raise InputError(f"limit '{name}' is {text}; it must be {kind} and not negative")
    return value
