"""Bit configs: which layer gets how many weight and activation bits (architecture.md, Bit config).

Nothing here needs torch, so that the planner and the command line can read and write bit configs
in a base install.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError

FORMAT = "tvm-q4/bit-config"
VERSION = 1
_PAIRS = ((4, 4), (8, 8), (4, 8))


@dataclass(frozen=True)
class LayerBits:
    """Precision of one convolution or linear layer: its weight bits and input-activation bits.

    Raises
    ------
    InputError
        If the pair is not W4A4, W8A8 or W4A8.
    """

    weight: int
    activation: int

    def __post_init__(self) -> None:
        if (self.weight, self.activation) not in _PAIRS:
            msg = (
                f"W{self.weight}A{self.activation} is not a supported precision; "
                "use W4A4, W4A8 or W8A8"
            )
            raise InputError(msg)


@dataclass(frozen=True)
class BitConfig:
    """Bits of every layer of a network.

    Parameters
    ----------
    default : LayerBits
        Bits of layers that `layers` does not name, except the first convolution and the last
        linear layer, which stay at W8A8.
    layers : mapping of str to LayerBits
        Bits by module path, for example ``layer1.0.conv1``. Naming the first or last layer here
        overrides the rule above.
    """

    default: LayerBits
    layers: Mapping[str, LayerBits] = field(default_factory=dict)

    def resolve(self, names: Iterable[str], kept: Iterable[str] = ()) -> dict[str, LayerBits]:
        """Return the bits of each layer in `names`.

        Parameters
        ----------
        names : iterable of str
            Module paths of the network's convolutions and linear layers.
        kept : iterable of str
            Those that stay at W8A8 unless the config names them (first and last layer).

        Raises
        ------
        InputError
            If the config names a layer that the network does not have.
        """
        known, edge = list(names), set(kept)
        for name in self.layers:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known[:4])}, ..."
                )
                msg = f"bit config names layer '{name}', which the network does not have; {hint}"
                raise InputError(msg)
        eight = LayerBits(8, 8)
        return {n: self.layers.get(n, eight if n in edge else self.default) for n in known}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of `architecture.md`."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "default": _pair(self.default),
            "layers": {name: _pair(bits) for name, bits in self.layers.items()},
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "bit config") -> BitConfig:
        """Build a config from its JSON object.

        Parameters
        ----------
        data : Any
            Parsed JSON.
        where : str
            File name for error messages.

        Raises
        ------
        InputError
            If format, version, a key or a value is not as `architecture.md` says.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            msg = f'{where}: not a bit config; it must be an object with "format": "{FORMAT}"'
            raise InputError(msg)
        if data.get("version") != VERSION:
            msg = (
                f"{where}: bit config version {data.get('version')!r}; this release reads {VERSION}"
            )
            raise InputError(msg)
        layers = data.get("layers", {})
        if not isinstance(layers, dict):
            msg = f"{where}: 'layers' is {type(layers).__name__}; it must map layer names to bits"
            raise InputError(msg)
        default = _bits(data.get("default", {"weight": 8, "activation": 8}), f"{where}, default")
        return cls(default, {n: _bits(b, f"{where}, layer '{n}'") for n, b in layers.items()})


PRESETS: Mapping[str, BitConfig] = {
    "uniform8": BitConfig(LayerBits(8, 8)),
    "uniform4": BitConfig(LayerBits(4, 4)),
    "w4a8": BitConfig(LayerBits(4, 8)),
}


def load_bit_config(spec: str | Path | Mapping[str, Any] | BitConfig) -> BitConfig:
    """Return a bit config from a preset's name, a JSON file, a parsed object, or one itself.

    Raises
    ------
    InputError
        If `spec` is neither a preset nor a readable bit config file.
    """
    if isinstance(spec, BitConfig):
        return spec
    if isinstance(spec, Mapping):
        return BitConfig.from_dict(dict(spec))
    if str(spec) in PRESETS:
        return PRESETS[str(spec)]
    path = Path(spec)
    try:
        return BitConfig.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"bit config '{spec}' is neither a preset ({', '.join(PRESETS)}) nor a readable file"
        raise InputError(msg) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); see architecture.md, Bit config") from error


def _pair(bits: LayerBits) -> dict[str, int]:
    return {"weight": bits.weight, "activation": bits.activation}


def _bits(data: Any, where: str) -> LayerBits:
    keys = ("weight", "activation")
    if not isinstance(data, dict) or not all(type(data.get(key)) is int for key in keys):
        msg = f'{where}: bits are {data!r}; write {{"weight": 4, "activation": 4}}'
        raise InputError(msg)
    try:
        return LayerBits(data["weight"], data["activation"])
    except InputError as error:
        msg = f"{where}: {error}"
        raise InputError(msg) from error
