"""Times of layers that others measured and published, for `latency`; nothing to compile with.

A table is one JSON object. It has no parameters and no kernels of ours, so it ranks below measured
records and above predictions, and it applies to one arch and one batch only.

============ =====================================================================================
``format``   "tvm-q4/published-times", within the first 256 bytes
``version``  1
``name``     under which a shipped table can be given in place of a path
``device``   that was measured; ``arch``, ``batch``, ``date``, ``citation``, ``source`` likewise
``kinds``    what was measured, by name of the kind
``use``      which kinds are read, the first that a layer has
``layers``   list of ``op`` (conv2d or dense), ``kernel`` [kh, kw], ``stride``, ``ci``, ``co``,
             ``size`` (height of the square input), ``network`` that was measured, ``names`` there,
             and ``us``: microseconds by kind and bits ("4", "8"), one number for each layer of the
             shape or for all of them; the median is taken
============ =====================================================================================

``hawq-v3-t4`` holds two kinds: "layer", the times that HAWQ's integer program took, and "kernel",
the convolutions alone. Neither adds up to the networks that its authors measured (ResNet-18 at 8
and 4 bits: 3.3 and 2.2 ms; sums of layers 5.3 and 3.1, of kernels 2.0 and 1.1). It uses "layer",
whose ratio of 8 to 4 bits is nearer to the networks', and with which their plans were made;
"kernel" where there is nothing else: the first convolution, the last layer, ResNet-50 "v1.5".
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError

FORMAT, VERSION = "tvm-q4/published-times", 1
SHIPPED = {"hawq-v3-t4": "hawq_v3_t4.json"}
_HEAD = 256

Geometry = tuple[str, tuple[int, int], int, int, int, int]
"""op, (kh, kw), stride, input channels, output channels, height of the input."""


@dataclass(frozen=True)
class PublishedTimes:
    """One table.

    Attributes
    ----------
    file, name, device, arch, date, citation : str
    batch : int
    times : mapping
        By network and `Geometry`: kind, and microseconds by bits.
    """

    file: str
    name: str
    device: str
    arch: str
    batch: int
    date: str
    citation: str
    times: Mapping[tuple[str, Geometry], tuple[str, Mapping[str, float]]]

    def microseconds(self, network: str, geometry: Geometry, bits: str) -> tuple[float, str] | None:
        """Time of a layer and its kind, of the network itself if it was measured, else of any."""
        names = {name for name, _ in self.times}
        networks = sorted(names, key=lambda name: (name != network, name))
        for name in networks:
            kind, us = self.times.get((name, geometry), ("", {}))
            if bits in us:
                return us[bits], kind
        return None


def is_published(path: str | Path) -> bool:
    """Whether a file, or the name of a shipped table, is a table of published times."""
    if str(path) in SHIPPED:
        return True
    try:
        with Path(path).open("rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(_HEAD)
    except OSError:
        return False


def read_published(path: str | Path) -> PublishedTimes:
    """Read a table by its path, or a shipped one by its name.

    Raises
    ------
    InputError
        If the file cannot be read, is of another version, or lacks a value.
    """
    shipped = SHIPPED.get(str(path))
    try:
        if shipped is not None:
            text = (resources.files(__name__) / shipped).read_text(encoding="utf-8")
        else:
            text = Path(path).read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        msg = f"table of published times '{path}' cannot be read: {error.strerror}"
        raise InputError(msg) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"table of published times '{path}' is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"'{path}' is no table of published times")
    if data.get("version") != VERSION:
        version = data.get("version")
        raise InputError(f"'{path}' has version {version!r}; this release reads {VERSION}")
    try:
        facts = {key: str(data[key]) for key in ("name", "device", "arch", "date", "citation")}
        if type(data["batch"]) is not int:
            raise ValueError(f"batch is {data['batch']!r}")
        times = dict(_time(layer, data["use"]) for layer in data["layers"])
        return PublishedTimes(shipped or Path(path).name, batch=data["batch"], times=times, **facts)
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"table of published times '{path}' is damaged: {what}") from None


def _time(
    layer: Mapping[str, Any], use: Sequence[str]
) -> tuple[tuple[str, Geometry], tuple[str, dict[str, float]]]:
    kh, kw = layer["kernel"]
    geometry = layer["op"], (kh, kw), layer["stride"], layer["ci"], layer["co"], layer["size"]
    kind = next((kind for kind in use if kind in layer["us"]), None)
    if kind is None:
        raise ValueError(f"a layer {list(geometry)} has none of the kinds {list(use)}")
    us = {bits: statistics.median(values) for bits, values in layer["us"][kind].items()}
    if not all(value > 0 for value in us.values()):
        raise ValueError(f"a layer {list(geometry)} has a time that is not positive")
    return (layer["network"], geometry), (kind, us)
