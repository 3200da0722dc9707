"""From a HAWQ checkpoint to an integer module, in HAWQ's own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm

from tvm_q4.errors import InputError
from tvm_q4.frontend.hawq.architecture import Architecture, find_architecture
from tvm_q4.frontend.hawq.bits import find_bits
from tvm_q4.frontend.hawq.checkpoint import checked_arrays, read_checkpoint
from tvm_q4.frontend.hawq.folding import with_integers
from tvm_q4.frontend.hawq.network import Network
from tvm_q4.frontend.recipe_build import build_module
from tvm_q4.quantize.config import BitConfig

ROUNDINGS = ("half_even", "half_away", "half_up", "floor")
_IMAGE_SIZE = (224, 224)


def load_hawq_model(
    path: str | Path,
    *,
    arch: str | Architecture | None = None,
    config: str | Path | Mapping[str, Any] | BitConfig | None = None,
    rounding: str = "half_even",
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> tvm.IRModule:
    """Load a checkpoint of HAWQ-V3's trainer as an integer module.

    Parameters
    ----------
    path : str or Path
        ``quantized_checkpoint.pth.tar`` or ``checkpoint.pth.tar``.
    arch : str, Architecture or None
        ``resnet18``, ``resnet34``, ``resnet50`` (v1), ``resnet50b`` (v1.5), ``resnet101`` or
        ``resnet101b``. None takes what the file says or its keys tell.
    config : str, Path, mapping, BitConfig or None
        Name of a published bit config (``uniform4``, ``bops_0.5``), or a bit config or its file
        with HAWQ's module names. None infers the bits.
    rounding : str
        ``half_even`` is what the PyTorch simulation computes. The others are TVM's side of HAWQ:
        ``half_away`` (TONEAREST), ``half_up`` (UPWARD) and ``floor`` (TRUNCATE); there residual
        adds always round half up, and the first stream is not clamped to 16 bits.
    batch : int or None
        None is 1.
    image_size : (int, int) or None
        Height and width; None is 224x224. The average pool covers what is left of any.

    Returns
    -------
    tvm.IRModule
        Module of stage "integer"; its tensors have HAWQ's module names.

    Raises
    ------
    InputError
        If the file is damaged, not what it must be, or contradicts `arch` or `config`.
    UnsupportedError
        If it is of another network.
    NumericsError
        If a scale or an accumulator leaves the range in which integers are exact.
    """
    if rounding not in ROUNDINGS:
        raise InputError(f"rounding '{rounding}' is unknown; use {', '.join(ROUNDINGS)}")
    file = read_checkpoint(path)
    network = find_architecture(arch, file.arch, file.tensors, file.where)
    arrays = checked_arrays(file, network)
    bits, name = find_bits(config, network, arrays, file.where)
    arrays = with_integers(arrays, network, bits, file.where)
    document, constants = Network(network, arrays, bits, rounding, file.where).document(
        image_size or _IMAGE_SIZE
    )
    document["meta"] = {
        "name": f"{network.name}@{name}",
        "source_format": "HAWQ checkpoint",
        "source_tool": "HAWQ-V3",
        "source_details": {"file": file.kind, "arch": network.name, "bit config": name,
                           "rounding": rounding},
        "transform": "imagenet",
    }  # fmt: skip
    return build_module(document, constants, batch or 1)
