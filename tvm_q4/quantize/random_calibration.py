"""Quantizing a float model without data, where only its kernels matter."""

from __future__ import annotations

from pathlib import Path

import torch
import tvm
from torch.export import ExportedProgram

from tvm_q4.frontend.torch_export import import_exported
from tvm_q4.frontend.zoo import build_program, parse_spec
from tvm_q4.model_report import describe_model
from tvm_q4.quantize.config import BitConfig, LayerBits
from tvm_q4.quantize.float_model import FloatModel, load_float_model
from tvm_q4.quantize.ptq import quantize_ptq


def quantize_at_random(
    model: str | Path,
    bits: int | BitConfig,
    *,
    seed: int = 0,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> tvm.IRModule:
    """A float model at a config's bits, or with every layer at `bits`, first and last ones too.

    Scales come from random images, for ``zoo:`` models in the same way as for ``zoo:NAME@CONFIG``,
    so that the kernels are those of the preset. The network computes nothing of use.

    Parameters
    ----------
    model : str or Path
        ``zoo:NAME`` or a float ``.pt2`` file.
    bits : {4, 8} or BitConfig
    seed : int
    batch, image_size
        As for `tvm_q4.load_model`.

    Raises
    ------
    InputError
        If the model is quantized already, or is no such model, or the config names a layer that it
        does not have.
    """
    source = load_float_model(model, seed)
    config = _every_layer(source, bits) if isinstance(bits, int) else bits
    if str(model).startswith("zoo:"):
        program = build_program(parse_spec(str(model))[0], config, seed)
    else:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(source.example[0].shape, generator=generator)
        program = _quantized(source.program, images, config)
    name = str(source.metadata["name"])
    return import_exported(program, batch=batch, image_size=image_size, name=name)


def _every_layer(source: FloatModel, bits: int) -> BitConfig:
    names = [layer["name"] for layer in describe_model(import_exported(source.program))["layers"]]
    pair = LayerBits(bits, bits)
    return BitConfig(pair, dict.fromkeys((names[0], names[-1]), pair))


def _quantized(
    program: ExportedProgram, images: torch.Tensor, config: BitConfig
) -> ExportedProgram:
    return quantize_ptq(
        program, (images,), [images], config,
        weight_observer="minmax", activation_observer="minmax", bias_correction=False,
        progress=False,
    )  # fmt: skip
