"""Post-training quantization: calibrate a float model and write a PT2E program (`quantize_ptq`)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from tvm_q4.errors import InputError
from tvm_q4.quantize import graph as g
from tvm_q4.quantize.adaround import AdaRoundOptions
from tvm_q4.quantize.config import BitConfig, load_bit_config
from tvm_q4.quantize.constants import name_constants
from tvm_q4.quantize.equalization import equalize_units
from tvm_q4.quantize.observers import ACTIVATION_OBSERVERS, WEIGHT_OBSERVERS
from tvm_q4.quantize.quantizer import Q4Quantizer
from tvm_q4.quantize.refine import refine
from tvm_q4.quantize.switchable import SwitchableQuantizer
from tvm_q4.quantize.units import fixed_batch, parts, units_of

_OUT_OF_PLACE = {
    torch.ops.aten.add_.Tensor: torch.ops.aten.add.Tensor,
    torch.ops.aten.relu_.default: torch.ops.aten.relu.default,
    torch.ops.aten.hardtanh_.default: torch.ops.aten.hardtanh.default,
}

_NO_DATA = "no calibration batches were given; pass at least one batch of typical inputs"


def quantize_ptq(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Tensor, ...],
    calibration_batches: Iterable[Tensor],
    config: BitConfig | str,
    *,
    weight_observer: str = "mse",
    activation_observer: str = "mse",
    residual_bits: int = 8,
    equalize: bool | Literal["auto"] = False,
    bias_correction: bool = True,
    rounding: Literal["nearest", "adaround"] = "nearest",
    rounding_options: AdaRoundOptions | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> ExportedProgram:
    """Quantize a float model after training.

    Parameters
    ----------
    model : nn.Module or ExportedProgram
        Float network; a module is used in evaluation mode.
    example_inputs : tuple of Tensor
        One float32 batch [N, C, H, W]. The result takes any batch size, except where `model` is
        an ExportedProgram of a fixed one: that one is kept.
    calibration_batches : iterable of Tensor
        Batches like the example, normalised as the network expects. Labels are not used.
    config : BitConfig or str
        Bits by layer: a config, a preset's name or a JSON file.
    weight_observer : {"mse", "minmax"}
        How a weight channel's scale is chosen.
    activation_observer : {"mse", "percentile", "minmax"}
        How an activation's scale is chosen.
    residual_bits : int
        Bits of the residual stream, 4, 8 or 16.
    equalize : bool or "auto"
        Cross-layer equalization (see `equalization`): of all pairs of layers that allow it, or of
        those where it clearly lowers the error on the calibration images.
    bias_correction : bool
        Correct the biases for the errors of their layers' means (see `bias_correction`).
    rounding : {"nearest", "adaround"}
        How 4-bit weights are rounded: "adaround" learns it (see `adaround`), which takes minutes
        and a few hundred images and is worth it. Weights of 8 bit are rounded to the nearest.
    rounding_options : AdaRoundOptions, optional
        How "adaround" learns.
    seed : int
        Seed of everything random.
    progress : bool, optional
        Show a progress bar on standard error; where None, if that is a terminal.

    Returns
    -------
    ExportedProgram
        Float operators between quantize and dequantize, batch normalisation folded. Constants
        carry their layer's name: ``<layer>.weight`` (int8), ``<layer>.weight_scale`` (float32
        [C]), ``<layer>.weight_zero_point`` (int64 [C]) and ``<layer>.bias`` (float32 [C]).

    Raises
    ------
    InputError
        If an option is unknown, the config does not fit, or there is no calibration data or it
        does not fit together.
    UnsupportedError
        If the model has nothing to quantize.
    """
    _check_options(equalize, rounding, rounding_options)
    example_inputs = dynamic_example(model, example_inputs)
    prepared = prepare_ptq(
        model, example_inputs, config, weight_observer=weight_observer,
        activation_observer=activation_observer, residual_bits=residual_bits,
    )  # fmt: skip
    refined = bias_correction or rounding == "adaround"
    if equalize or refined:
        images = _joined(calibration_batches)
        calibration_batches = parts(images, fixed_batch(prepared))
    if equalize:
        equalize_units(prepared, units_of(prepared), images, equalize)
    calibrate(prepared, calibration_batches)
    if refined:
        learned = (rounding_options or AdaRoundOptions()) if rounding == "adaround" else None
        refine(
            prepared, images, bias_correction=bias_correction, rounding=learned, seed=seed,
            progress=progress,
        )  # fmt: skip
    return convert(prepared, example_inputs)


def prepare_ptq(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Tensor, ...],
    config: BitConfig | str,
    *,
    weight_observer: str = "mse",
    activation_observer: str = "mse",
    residual_bits: int = 8,
) -> GraphModule:
    """Return the float network, batch normalisation folded, with quantizers that observe.

    Parameters
    ----------
    model, config, weight_observer, activation_observer, residual_bits
        As in `quantize_ptq`.
    example_inputs : tuple of Tensor
        Likewise; through `dynamic_example` where `model` is a module.

    Returns
    -------
    GraphModule
        Its quantizers are `SwitchableQuantizer`.
    """
    weight = _choice(WEIGHT_OBSERVERS, weight_observer, "weight_observer")
    activation = _choice(ACTIVATION_OBSERVERS, activation_observer, "activation_observer")
    quantizer = Q4Quantizer(
        load_bit_config(config),
        SwitchableQuantizer.with_args(observer=weight),
        SwitchableQuantizer.with_args(observer=activation),
        residual_bits,
    )
    return prepare_pt2e(capture(model, example_inputs), quantizer)


def _check_options(equalize: object, rounding: object, options: AdaRoundOptions | None) -> None:
    if equalize not in (False, True, "auto"):
        raise InputError(f"equalize is {equalize!r}; use True, False or 'auto'")
    if rounding not in ("nearest", "adaround"):
        raise InputError(f"rounding is {rounding!r}; use nearest or adaround")
    if options is not None and rounding != "adaround":
        raise InputError("rounding_options are for rounding='adaround'; leave them out")


def _joined(batches: Iterable[Tensor]) -> Tensor:
    """Return all calibration images as one tensor."""
    images = list(batches)
    if not images:
        raise InputError(_NO_DATA)
    shapes = sorted({tuple(batch.shape[1:]) for batch in images})
    if len(shapes) > 1:
        msg = f"calibration images have shapes {list(shapes[0])} and {list(shapes[1])}"
        raise InputError(f"{msg}; they must all have one shape")
    return torch.cat(images)


def capture(
    model: nn.Module | ExportedProgram, example_inputs: tuple[Tensor, ...], training: bool = False
) -> GraphModule:
    """Return the model's graph of ATen operators, in-place operators made out-of-place.

    Parameters
    ----------
    model : nn.Module or ExportedProgram
    example_inputs : tuple of Tensor
        One batch; see `dynamic_example`.
    training : bool
        Record a module in training mode (batch statistics, dropout).
    """
    if isinstance(model, nn.Module):
        model = export(copy.deepcopy(model).train(training), example_inputs)
        module = model.module(check_guards=False)
    else:
        module = copy.deepcopy(model.module(check_guards=False))
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _OUT_OF_PLACE:
            mutated = node.args[0]
            if len(mutated.users) == 1 and not g.is_constant(mutated):
                node.target = _OUT_OF_PLACE[node.target]
    module.recompile()
    return module


def export(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """Run ``torch.export.export`` with a dynamic batch where the module allows it.

    torch specialises a batch of 1, so an example batch of 1 needs `dynamic_example` first.
    """
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in example_inputs)
    return torch.export.export(module, example_inputs, dynamic_shapes=shapes)


def dynamic_example(
    model: nn.Module | ExportedProgram, example_inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the example with a batch of at least 2; a program's own example batch is kept."""
    if isinstance(model, ExportedProgram):
        return example_inputs
    return tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in example_inputs)


@torch.no_grad()
def calibrate(prepared: GraphModule, batches: Iterable[Tensor]) -> None:
    """Let the observers of `prepared` see every batch.

    Raises
    ------
    InputError
        If `batches` is empty.
    """
    count = 0
    for batch in batches:
        prepared(batch)
        count += 1
    if count == 0:
        raise InputError(_NO_DATA)


def convert(prepared: GraphModule, example_inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """Turn a calibrated or trained graph into a program with quantize and dequantize operators.

    Parameters
    ----------
    prepared : GraphModule
        From `prepare_qat`, or from PT2E's ``prepare_pt2e`` with a `Q4Quantizer`.
    example_inputs : tuple of Tensor
        As in `quantize_ptq`. A program file stores its example, so zeros of that shape are used.
    """
    move_exported_model_to_eval(prepared)
    converted = convert_pt2e(prepared)
    _remove_dropout(converted)
    name_constants(converted)
    return export(converted, tuple(torch.zeros_like(x) for x in example_inputs))


def _remove_dropout(module: GraphModule) -> None:
    for node in list(module.graph.nodes):
        if g.called(node, g.DROPOUTS):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()


def _choice(table: dict[str, Any], name: str, what: str) -> Any:
    if name not in table:
        msg = f"{what} is {name!r}; use one of {', '.join(table)}"
        raise InputError(msg)
    return table[name]
