"""Bit widths of a HAWQ checkpoint: by the name of a published config, from a file, or inferred.

A checkpoint does not hold them. Weight bits follow from the largest integer weight, activation bits
from a scale and the range that it was made from (``checkpoint.pth.tar`` alone has the range).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError
from tvm_q4.frontend.hawq.architecture import INPUT_ACT, OUTPUT, OUTPUT_ACT, Architecture
from tvm_q4.frontend.hawq.checkpoint import Arrays
from tvm_q4.quantize.config import BitConfig, LayerBits, load_bit_config

Bits = dict[str, LayerBits]

_UNIFORM = ("uniform8", "uniform4")
_LEAST = np.float32(1e-8)
_STREAM_BITS = 16
_ULP = 2.0**-22
"""Relative difference of two float32 quotients that were rounded once or twice."""


def published_configs(arch: str) -> dict[str, BitConfig]:
    """Bit configs that HAWQ-V3 publishes for a network, by name."""
    text = resources.files(__package__).joinpath("bit_configs.json").read_text(encoding="utf-8")
    mixed = json.loads(text)["networks"].get(arch, {})
    four, eight = LayerBits(4, 4), LayerBits(8, 8)
    named = {name: BitConfig(eight, dict.fromkeys(layers, four)) for name, layers in mixed.items()}
    return {name: load_bit_config(name) for name in _UNIFORM} | named


def find_bits(
    config: str | Path | Mapping[str, Any] | BitConfig | None,
    arch: Architecture,
    arrays: Arrays,
    where: str,
) -> tuple[Bits, str]:
    """Bits of every layer, and what to call the config.

    Parameters
    ----------
    config : str, Path, mapping, BitConfig or None
        A published name, a bit config or its file (layers by HAWQ's module names); None infers.
    arch : Architecture
    arrays : dict of str to ndarray
        The checkpoint's, checked.
    where : str
        The file, for errors.

    Raises
    ------
    InputError
        If there is no such config, it contradicts the file, or the file does not tell the bits.
    """
    if config is None:
        bits = _inferred(arch, arrays, where)
        return bits, _name_of(bits, arch)
    bits = _resolved(_config(config, arch), arch)
    _check(bits, arch, arrays, where)
    return bits, str(config) if isinstance(config, (str, Path)) else _name_of(bits, arch)


def activation_scale(bits: int, low: NDArray[Any], high: NDArray[Any]) -> np.float32:
    """Scale that HAWQ derives from a range: symmetric at 8 and 16 bits, from 0 to 15 at 4."""
    x_min, x_max = np.float32(low.item()), np.float32(high.item())
    span = x_max - x_min if bits == 4 else max(abs(x_min), abs(x_max))
    return np.float32(max(span, _LEAST) / np.float32(15 if bits == 4 else 2 ** (bits - 1) - 1))


def _config(config: str | Path | Mapping[str, Any] | BitConfig, arch: Architecture) -> BitConfig:
    if not isinstance(config, (str, Path)):
        return load_bit_config(config)
    named = published_configs(arch.name)
    if str(config) in named:
        return named[str(config)]
    if not Path(config).is_file():
        msg = f"bit config '{config}' is neither a file nor published for {arch.name}"
        raise InputError(f"{msg}; published are {', '.join(named)}")
    return load_bit_config(config)


def _resolved(config: BitConfig, arch: Architecture) -> Bits:
    bits = config.resolve(arch.reads(), kept=(arch.first.name, OUTPUT))
    for layer in (arch.first.name, OUTPUT):
        if bits[layer] != LayerBits(8, 8):
            raise InputError(f"bit config gives '{layer}' {_text(bits[layer])}; HAWQ keeps it W8A8")
    activation_bits(bits, arch)
    return bits


def activation_bits(bits: Bits, arch: Architecture) -> dict[str, int]:
    """Bits of each quantizer that feeds a layer.

    Raises
    ------
    InputError
        If two layers that read one quantizer differ.
    """
    found: dict[str, tuple[str, int]] = {}
    for layer, act in arch.reads().items():
        first, known = found.setdefault(act, (layer, bits[layer].activation))
        if known != bits[layer].activation:
            msg = f"'{first}' and '{layer}' read the same tensor '{act}' but have {known} and"
            raise InputError(f"bit config: {msg} {bits[layer].activation} activation bits")
    return {act: bits for act, (_, bits) in found.items()}


def _text(bits: LayerBits) -> str:
    return f"W{bits.weight}A{bits.activation}"


def _name_of(bits: Bits, arch: Architecture) -> str:
    """Published name of an assignment; equal ones are published under several."""
    names = [n for n, c in published_configs(arch.name).items() if _resolved(c, arch) == bits]
    return " = ".join(names) or "mixed"


def _inferred(arch: Architecture, arrays: Arrays, where: str) -> Bits:
    reads = arch.reads()
    by_range = {act: _range_bits(act, arrays, where) for act in dict.fromkeys(reads.values())}
    weights = {layer: _weight_bits(layer, arrays) for layer in reads}
    bits = {}
    for layer, act in reads.items():
        weight, activation = weights[layer], by_range[act]
        if activation is None:
            readers = {weights[other] for other, a in reads.items() if a == act} - {None}
            if len(readers) != 1:
                msg = f"{where} does not tell the activation bits of '{act}'"
                raise InputError(f"{msg}; give the bit config that it was trained with")
            activation = readers.pop()
        bits[layer] = _pair(activation if weight is None else weight, activation, layer, where)
    for layer in (arch.first.name, OUTPUT):
        bits[layer] = LayerBits(8, 8)
    _check(bits, arch, arrays, where)
    return bits


def _pair(weight: int | None, activation: int | None, layer: str, where: str) -> LayerBits:
    assert weight is not None and activation is not None
    try:
        return LayerBits(weight, activation)
    except InputError as error:
        raise InputError(f"{where}: layer '{layer}': {error}") from error


def _weight_bits(layer: str, arrays: Arrays) -> int | None:
    """Bits of integer weights: one weight of each channel has the largest magnitude, 7 or 127.

    None where there are none yet, or all are 0.
    """
    largest = _largest(layer, arrays)
    if largest == 0:
        return None
    return 4 if largest <= 8 else 8


def _largest(layer: str, arrays: Arrays) -> int:
    weight = arrays.get(f"{layer}.weight_integer")
    return 0 if weight is None else int(np.abs(weight).max(initial=0))


def _range_bits(act: str, arrays: Arrays, where: str) -> int | None:
    """Bits for which a quantizer's scale follows from its range; None where no range is stored."""
    if f"{act}.x_min" not in arrays:
        return None
    if act in (INPUT_ACT, OUTPUT_ACT):
        return 8
    for bits in (8, 4):
        if _follows(act, bits, arrays):
            return bits
    raise InputError(f"{where}: {_unlike(act, arrays)} at 4 or 8 bits; use another file")


def _follows(act: str, bits: int, arrays: Arrays) -> bool:
    expected = activation_scale(bits, arrays[f"{act}.x_min"], arrays[f"{act}.x_max"])
    stored = np.float64(arrays[f"{act}.act_scaling_factor"].item())
    return bool(abs(stored - np.float64(expected)) <= _ULP * expected)


def _unlike(act: str, arrays: Arrays) -> str:
    scale, low, high = (
        arrays[f"{act}.{k}"].item() for k in ("act_scaling_factor", "x_min", "x_max")
    )
    return f"the scale {scale:.8g} of '{act}' does not follow from its range {low:.8g}..{high:.8g}"


def _check(bits: Bits, arch: Architecture, arrays: Arrays, where: str) -> None:
    """Compare bits with what the file's integers and ranges say."""
    for layer, pair in bits.items():
        found = _weight_bits(layer, arrays)
        if found not in (None, pair.weight):
            largest = _largest(layer, arrays)
            msg = f"{where}: the weights of '{layer}' reach {largest}, which are {found} bits"
            raise InputError(f"{msg}, not {pair.weight}; give the bit config of its training")
    acts = activation_bits(bits, arch) | dict.fromkeys(arch.streams(), _STREAM_BITS)
    for act, count in acts.items():
        if f"{act}.x_min" in arrays and not _follows(act, count, arrays):
            msg = f"{_unlike(act, arrays)} at {count} bits"
            raise InputError(f"{where}: {msg}; give the bit config of its training")
