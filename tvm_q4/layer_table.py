"""Layer tables: what each layer of a network costs and risks at each precision (architecture.md).

``sensitivity`` and ``latency`` write one half each; `plan` joins them. Nothing here needs torch or
TVM. Keys that are not known are kept and ignored.
"""

from __future__ import annotations

import json
import logging
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError
from tvm_q4.json_file import write_json

FORMAT, VERSION = "tvm-q4/layer-table", 1
PRECISIONS = ("4", "8", "w4a8")
"""Keys of `LayerRow.sensitivity`, `latency_ms` and `source`: W4A4, W8A8, W4A8."""

Number = int | float
logger = logging.getLogger(__name__)
_ROW_KEYS = ("name", "params", "macs", "sensitivity", "latency_ms", "source", "fixed")
_BOUNDARY_KEYS = ("from", "to", "latency_ms", "source")
_TABLE_KEYS = (
    *("format", "version", "network", "batch", "target"),
    *("layers", "tied", "boundaries", "rest_ms"),
)


@dataclass(frozen=True)
class LayerRow:
    """A convolution or linear layer.

    Parameters
    ----------
    name : str
    params, macs : number, optional
        Weights, and multiplications for one image.
    sensitivity, latency_ms : mapping of str to number
        By precision: ``"4"``, ``"8"``, ``"w4a8"``.
    source : mapping of str to str
        Where each latency comes from, by precision.
    fixed : int, optional
        8 for a layer that stays at 8 bits; it needs no values at other precisions.
    extra : mapping
        Further keys of the row.
    """

    name: str
    params: Number | None = None
    macs: Number | None = None
    sensitivity: Mapping[str, Number] = field(default_factory=dict)
    latency_ms: Mapping[str, Number] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    fixed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object, without what is not known."""
        pairs: dict[str, Any] = {key: getattr(self, key) for key in _ROW_KEYS}
        for key in ("sensitivity", "latency_ms", "source"):
            pairs[key] = dict(pairs[key])
        return {k: v for k, v in pairs.items() if v not in (None, {})} | dict(self.extra)


@dataclass(frozen=True)
class Boundary:
    """What a layer's kernel takes longer where its readers have other activation bits.

    Parameters
    ----------
    producer : str
    consumers : tuple of str
        Layers that read its result.
    latency_ms : mapping of str to number
        Additional milliseconds, which may be negative, at ``"8-4"`` (the producer's own activation
        bits, then its consumers') and ``"4-8"``.
    source : mapping of str to str
        Where each comes from.
    extra : mapping
        Further keys.
    """

    producer: str
    consumers: tuple[str, ...]
    latency_ms: Mapping[str, Number]
    source: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        out: dict[str, Any] = {"from": self.producer, "to": list(self.consumers)}
        out["latency_ms"] = dict(self.latency_ms)
        return out | ({"source": dict(self.source)} if self.source else {}) | dict(self.extra)


@dataclass(frozen=True)
class LayerTable:
    """Layers in network order, what ties them, and what lies between them.

    Parameters
    ----------
    layers : tuple of LayerRow
    tied : tuple of tuples of str
        Layers that take the same activation bits.
    boundaries : tuple of Boundary
    rest_ms : number, optional
        Time of what is no such layer; 0 where not given.
    network, target : str, optional
    batch : int, optional
        Images a run, of the latencies.
    extra : mapping
        Further keys.
    """

    layers: tuple[LayerRow, ...]
    tied: tuple[tuple[str, ...], ...] = ()
    boundaries: tuple[Boundary, ...] = ()
    rest_ms: Number | None = None
    network: str | None = None
    batch: int | None = None
    target: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of `architecture.md`."""
        out: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        for key in ("network", "batch", "target"):
            if getattr(self, key) is not None:
                out[key] = getattr(self, key)
        out |= dict(self.extra) | {"layers": [row.to_dict() for row in self.layers]}
        out["tied"] = [list(group) for group in self.tied]
        if self.boundaries:
            out["boundaries"] = [boundary.to_dict() for boundary in self.boundaries]
        return out if self.rest_ms is None else out | {"rest_ms": self.rest_ms}

    def write(self, path: str | Path) -> None:
        """Write the table as JSON through a temporary name, so that nobody reads half of it.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        write_json(self.to_dict(), path, "table")


def read_table(path: str | Path) -> LayerTable:
    """Return the layer table of a JSON file.

    Raises
    ------
    InputError
        If the file cannot be read or is no layer table; says layer, key and value.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"layer table '{path}' cannot be read: {why}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); it must be a layer table") from error
    return from_dict(data, str(path))


def from_dict(data: Any, where: str = "layer table") -> LayerTable:
    """Build a table from its JSON object.

    Parameters
    ----------
    data : Any
        Parsed JSON.
    where : str
        File name for error messages.

    Raises
    ------
    InputError
        If format, version, a key or a value is not as `architecture.md` says, a name appears
        twice, or a tie or a boundary names a layer that is not in the table.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(
            f'{where}: not a layer table; it must be an object with "format": "{FORMAT}"'
        )
    if data.get("version") != VERSION:
        version = reprlib.repr(data.get("version"))
        raise InputError(f"{where}: layer table version {version}; this release reads {VERSION}")
    layers = tuple(_row(row, where) for row in _items(data, "layers", where))
    names = [row.name for row in layers]
    if not names:
        raise InputError(f"{where}: 'layers' is empty; give at least one layer")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: layer '{name}' is there {names.count(name)} times")
    rest = data.get("rest_ms")
    return LayerTable(
        layers,
        tuple(_names(group, names, f"{where}, tied") for group in _items(data, "tied", where)),
        tuple(_boundary(pair, names, where) for pair in _items(data, "boundaries", where)),
        None if rest is None else _number(rest, f"{where}: rest_ms"),
        _typed(data, "network", str, where),
        _typed(data, "batch", int, where),
        _typed(data, "target", str, where),
        _others(data, _TABLE_KEYS),
    )


def join(tables: Sequence[LayerTable], where: Sequence[str] = ()) -> LayerTable:
    """Return one table with what several say of the same layers, in the first one's order.

    Ties and boundaries of all tables count. Network names may differ (latencies do not depend on
    weights); of these, and of keys that are not known, the first one stays.

    Parameters
    ----------
    tables : sequence of LayerTable
    where : sequence of str, optional
        File names for error messages.

    Raises
    ------
    InputError
        If a layer is not in all tables, or two tables give different values for one thing: a
        layer's params, macs, or value at one precision, a boundary, the rest, or the batch or
        target of latencies.
    """
    if not tables:
        raise InputError("no layer table was given; give at least one")
    labels = [where[i] if i < len(where) else f"layer table {i + 1}" for i in range(len(tables))]
    joined, *others = tables
    for other, label in zip(others, labels[1:], strict=True):
        joined = _join(joined, other, f"{label} and {labels[0]}")
    return joined


def _join(a: LayerTable, b: LayerTable, where: str) -> LayerTable:
    rows = {row.name: row for row in b.layers}
    different = set(rows) ^ {row.name for row in a.layers}
    if different:
        raise InputError(f"{where}: layer '{min(different)}' is in one of the tables only")
    timed = all(any(row.latency_ms for row in table.layers) for table in (a, b))
    for key in ("batch", "target") if timed else ():
        _agreed(getattr(a, key), getattr(b, key), f"{where}: {key} of the latencies")
    if None not in (a.network, b.network) and a.network != b.network:
        logger.warning("%s: tables of '%s' and of '%s' are joined", where, b.network, a.network)
    # The batch and the target are the latencies'; a table without them may be of another batch.
    first, second = (b, a) if any(r.latency_ms for r in b.layers) and not timed else (a, b)
    boundaries = {(c.producer, c.consumers): c for c in a.boundaries}
    for new in b.boundaries:
        ends = (new.producer, new.consumers)
        boundaries[ends] = _join_boundary(boundaries.get(ends, new), new, where)
    return LayerTable(
        tuple(_join_rows(row, rows[row.name], where) for row in a.layers),
        tuple(dict.fromkeys((*a.tied, *b.tied))),
        tuple(boundaries.values()),
        _agreed(a.rest_ms, b.rest_ms, f"{where}: rest_ms"),
        a.network if a.network is not None else b.network,
        first.batch if first.batch is not None else second.batch,
        first.target if first.target is not None else second.target,
        {**b.extra, **a.extra},
    )


def _join_rows(a: LayerRow, b: LayerRow, where: str) -> LayerRow:
    here = f"{where}, layer '{a.name}'"
    return LayerRow(
        a.name,
        _agreed(a.params, b.params, f"{here}: params"),
        _agreed(a.macs, b.macs, f"{here}: macs"),
        _merged(a.sensitivity, b.sensitivity, f"{here}: sensitivity"),
        _merged(a.latency_ms, b.latency_ms, f"{here}: latency_ms"),
        {**b.source, **a.source},
        _agreed(a.fixed, b.fixed, f"{here}: fixed"),
        {**b.extra, **a.extra},
    )


def _join_boundary(a: Boundary, b: Boundary, where: str) -> Boundary:
    here = f"{where}, boundary of '{a.producer}': latency_ms"
    deltas = _merged(a.latency_ms, b.latency_ms, here)
    return Boundary(
        a.producer, a.consumers, deltas, {**b.source, **a.source}, {**b.extra, **a.extra}
    )


def _merged(a: Mapping[str, Any], b: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {k: _agreed(a.get(k), b.get(k), f"{where} at {k}") for k in {**a, **b}}


def _agreed(a: Any, b: Any, where: str) -> Any:
    """The value that two tables agree on, one of which may not have it."""
    if a is not None and b is not None and a != b:
        raise InputError(f"{where} is {b!r} and {a!r}; join tables of the same network only")
    return b if a is None else a


def _row(data: Any, where: str) -> LayerRow:
    if not isinstance(data, dict) or not isinstance(data.get("name"), str) or not data["name"]:
        raise InputError(f"{where}: layer {reprlib.repr(data)} must be an object with a 'name'")
    here = f"{where}, layer '{data['name']}'"
    counts = {
        key: None if data.get(key) is None else _number(data[key], f"{here}: {key}")
        for key in ("params", "macs")
    }
    fixed = data.get("fixed")
    if fixed is not None and (isinstance(fixed, bool) or fixed != 8):
        raise InputError(f"{here}: fixed is {reprlib.repr(fixed)}; a layer can be fixed at 8 only")
    return LayerRow(
        data["name"],
        counts["params"],
        counts["macs"],
        _numbers(data, "sensitivity", here, signed=True),
        _numbers(data, "latency_ms", here),
        _mapping(data, "source", here),
        fixed,
        _others(data, _ROW_KEYS),
    )


def _boundary(data: Any, names: Sequence[str], where: str) -> Boundary:
    if not isinstance(data, dict) or not isinstance(data.get("to"), list) or not data["to"]:
        what = reprlib.repr(data)
        raise InputError(f"{where}: boundary {what} must be an object with 'from', 'to' and times")
    here = f"{where}, boundary of '{data.get('from')}'"
    (producer,) = _names([data.get("from")], names, here)
    consumers = _names(data["to"], names, here)
    deltas = _numbers(data, "latency_ms", here, signed=True)
    source = _mapping(data, "source", here)
    return Boundary(producer, consumers, deltas, source, _others(data, _BOUNDARY_KEYS))


def _items(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = data.get(key, [])
    if not isinstance(found, list):
        raise InputError(f"{where}: '{key}' is {reprlib.repr(found)}; it must be a list")
    return found


def _names(group: Any, known: Sequence[str], where: str) -> tuple[str, ...]:
    if not isinstance(group, list):
        raise InputError(f"{where}: {reprlib.repr(group)} must be a list of layer names")
    for name in group:
        if name not in known:
            what = reprlib.repr(name)
            few = ", ".join(known[:3])
            raise InputError(f"{where}: layer {what} is unknown; the table has {few}, ...")
    return tuple(group)


def _mapping(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        what = reprlib.repr(found)
        raise InputError(f"{where}: {key} is {what}; it must be an object with keys 4 and 8")
    return dict(found)


def _numbers(
    data: Mapping[str, Any], key: str, where: str, signed: bool = False
) -> dict[str, Number]:
    found = _mapping(data, key, where)
    return {k: _number(v, f"{where}: {key} at {k}", signed) for k, v in found.items()}


def _number(value: Any, where: str, signed: bool = False) -> Number:
    try:
        good = not isinstance(value, bool) and math.isfinite(value) and (signed or value >= 0)
    except (TypeError, OverflowError):
        good = False
    if not good:
        needed = "a number" if signed else "a number and not negative"
        raise InputError(f"{where} is {reprlib.repr(value)}; it must be {needed}")
    assert isinstance(value, int | float)
    return value


def _typed(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = data.get(key)
    if value is not None and type(value) is not kind:
        what = reprlib.repr(value)
        raise InputError(f"{where}: {key} is {what}; it must be of type {kind.__name__}")
    return value


def _others(data: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in known}
