"""The shape of a library's metadata: what this package reads of it, and of which kinds.

Further keys are kept and ignored. A damaged or hand-made file is told from a good one here, so that
what reads the metadata later need not look twice.
"""

from __future__ import annotations

import math
from typing import Any

_LARGEST = 2**63
INT, FLOAT, TEXT, BOOL = "an integer", "a finite number", "text", "true or false"


class Maybe:
    """Something that may be null or missing."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec


_QUANTIZED = {
    "dtype": TEXT, "lo": INT, "hi": INT, "scale": Maybe(FLOAT), "zero_point": Maybe(INT),
}  # fmt: skip
_CALL = {"kernel": TEXT, "layer": TEXT, "outputs": [{"name": TEXT, "shape": [INT], "dtype": TEXT}]}
_LAYER = {
    "name": TEXT, "weight_bits": INT, "activation_bits": INT, "executes_as": TEXT, "params": INT,
    "macs": INT, "bops": INT, "weight_bytes": INT, "in_shape": [INT], "out_shape": [INT],
    "kernel": TEXT, "source": Maybe(TEXT),
}  # fmt: skip
_METADATA = {
    "model": {
        "name": Maybe(TEXT), "source_format": Maybe(TEXT), "source_tool": Maybe(TEXT),
        "source_details": Maybe({}), "sha256": TEXT,
    },
    "target": {"kind": TEXT},
    "batch": INT,
    "input": {"name": TEXT, "shape": [INT], "dtype": TEXT, "quantized": Maybe(_QUANTIZED)},
    "output": {"name": TEXT, "shape": [INT], "dtype": TEXT, "integer": BOOL},
    "classes": Maybe([TEXT]),
    "layers": [_LAYER],
    "float_ops": [{"name": TEXT, "op": TEXT, "reason": TEXT}],
    "calls": [_CALL],
    "memory": {"arena_bytes": INT, "weight_bytes": INT},
}  # fmt: skip
_CUDA = {"archs": [INT], "ptx": INT}


def metadata_fault(metadata: Any) -> str | None:
    """What is wrong with a library's metadata, in words, or None."""
    found = _fault(metadata, _METADATA, "metadata")
    if found is None and metadata["target"]["kind"] == "cuda":
        found = _fault(metadata["target"], _CUDA, "metadata.target")
    return found


def _fault(value: Any, spec: Any, where: str) -> str | None:
    """What is wrong with `value`, or None where it is as `spec` says.

    A spec is one of `INT`, `FLOAT`, `TEXT` and `BOOL`, a dict of specs by key, a list of the spec
    of each element, or a `Maybe`.
    """
    if isinstance(spec, Maybe):
        return None if value is None else _fault(value, spec.spec, where)
    if isinstance(spec, dict):
        if not isinstance(value, dict):
            return f"{where} is a {type(value).__name__}, expected an object"
        found = (_fault(value.get(key), part, f"{where}.{key}") for key, part in spec.items())
        return next((text for text in found if text), None)
    if isinstance(spec, list):
        if not isinstance(value, list):
            return f"{where} is a {type(value).__name__}, expected a list"
        found = (_fault(item, spec[0], f"{where}[{i}]") for i, item in enumerate(value))
        return next((text for text in found if text), None)
    return None if _is(value, spec) else f"{where} is {_short(value)}, expected {spec}"


def _is(value: Any, kind: str) -> bool:
    if kind in (TEXT, BOOL):
        return isinstance(value, str if kind == TEXT else bool)
    if isinstance(value, float):
        return kind == FLOAT and math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "beyond 64 bits"
    text = ascii(value)
    return text if len(text) < 60 else f"{text[:57]}..."
