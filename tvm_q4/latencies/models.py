"""The networks whose kernels are timed: one float model at several bit configs, lowered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

from tvm_q4.errors import InputError
from tvm_q4.latencies.network import Kernels, Readers, kernels_by_layer, readers
from tvm_q4.meta import model_meta
from tvm_q4.quantize.config import PRESETS, BitConfig, LayerBits
from tvm_q4.relay_passes.pipeline import to_fused, to_integer, to_kernels
from tvm_q4.tuning_logs.records import Record
from tvm_q4.variants import Variant

_PRESETS = {"8": "uniform8", "4": "uniform4", "w4a8": "w4a8"}


@dataclass(frozen=True)
class Network:
    """A network at one bit config."""

    name: str
    batch: int
    kernels: Mapping[str, Kernels]
    readers: Readers


class Networks:
    """Makes networks of one float model.

    Parameters
    ----------
    model : str or Path
        ``zoo:NAME`` or a float ``.pt2`` file.
    given : mapping of int to path or module
        The model at 8 or at 4 bits, to take in place of one made here.
    variant : Variant
        What kernels are for.
    tuned : callable
        Gives the record of a signature, or None.
    batch, image_size, seed
        As for `tvm_q4.quantize.quantize_at_random`.
    arch : str, optional
        Of HAWQ checkpoints among the given models.

    Raises
    ------
    InputError
        If `given` holds models of other bits, or ones that cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        given: Mapping[int, str | Path | tvm.IRModule],
        variant: Variant,
        tuned: Callable[[str], Record | None],
        *,
        batch: int | None,
        image_size: tuple[int, int] | None,
        seed: int,
        arch: str | None = None,
    ) -> None:
        unknown = set(given) - {4, 8}
        if unknown:
            raise InputError(f"there are models of 4 and of 8 bits, not of {min(unknown)}")
        self._model, self._variant, self._tuned = model, variant, tuned
        self._options: dict[str, Any] = {"batch": batch, "image_size": image_size, "seed": seed}
        self._given = {str(bits): self._load(source, arch) for bits, source in given.items()}

    def _load(self, source: str | Path | tvm.IRModule, arch: str | None) -> tvm.IRModule:
        from tvm_q4.frontend import load_model

        if isinstance(source, tvm.IRModule):
            return source
        return load_model(source, require_quantized=True, arch=arch, **self._options)

    def at(self, precision: str) -> Network:
        """The network with all layers at "4", "8" or "w4a8"; the first and the last one at 8.

        A given model is taken as it is.
        """
        if precision in self._given:
            return self._lowered(self._given[precision])
        return self._made(PRESETS[_PRESETS[precision]])

    def mixed(self, bits: Mapping[str, int]) -> Network:
        """The network at 8 bits but for layers that `bits` names."""
        layers = {name: LayerBits(b, b) for name, b in bits.items()}
        return self._made(BitConfig(LayerBits(8, 8), layers))

    def _made(self, config: BitConfig) -> Network:
        from tvm_q4.quantize import quantize_at_random

        return self._lowered(quantize_at_random(self._model, config, **self._options))

    def _lowered(self, mod: tvm.IRModule) -> Network:
        mod = to_integer(mod)
        name = model_meta(mod).get("name", str(self._model)).partition("@")[0]
        lowered = to_kernels(to_fused(mod), self._variant.target, self._variant.rules, self._tuned)
        kernels = kernels_by_layer(lowered.calls)
        batch = int(mod["main"].params[0].ty.shape[0])
        return Network(name, batch, kernels, readers(lowered.calls))


def check_same_layers(networks: Sequence[Network]) -> None:
    """Raises InputError if they do not have the same layers, or none."""
    first, *others = (set(network.kernels) for network in networks)
    if not first:
        raise InputError(f"{networks[0].name} has no quantized convolution or linear layer to time")
    for other in others:
        if first != other:
            msg = f"layer {min(first ^ other)!r} is in one of the models of 4 and 8 bits only"
            raise InputError(f"{msg}; give the same network")
