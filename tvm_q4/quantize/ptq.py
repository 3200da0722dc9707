"""Post-training quantization: calibrate a float model and write a PT2E program (`quantize_ptq`)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from tvm_q4.errors import InputError
from tvm_q4.quantize import graph as g
from tvm_q4.quantize.config import BitConfig, load_bit_config
from tvm_q4.quantize.constants import name_constants
from tvm_q4.quantize.observers import ACTIVATION_OBSERVERS, WEIGHT_OBSERVERS
from tvm_q4.quantize.quantizer import Q4Quantizer

_OUT_OF_PLACE = {
    torch.ops.aten.add_.Tensor: torch.ops.aten.add.Tensor,
    torch.ops.aten.relu_.default: torch.ops.aten.relu.default,
    torch.ops.aten.hardtanh_.default: torch.ops.aten.hardtanh.default,
}


def quantize_ptq(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Tensor, ...],
    calibration_batches: Iterable[Tensor],
    config: BitConfig | str,
    *,
    weight_observer: str = "mse",
    activation_observer: str = "mse",
    residual_bits: int = 8,
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
        Bits of the residual stream, 4 or 8.

    Returns
    -------
    ExportedProgram
        Float operators between quantize and dequantize, batch normalisation folded. Constants
        carry their layer's name: ``<layer>.weight`` (int8), ``<layer>.weight_scale`` (float32
        [C]), ``<layer>.weight_zero_point`` (int64 [C]) and ``<layer>.bias`` (float32 [C]).

    Raises
    ------
    InputError
        If an observer's name is unknown, the config does not fit or there is no calibration data.
    UnsupportedError
        If the model has nothing to quantize.
    """
    quantizer = Q4Quantizer(
        load_bit_config(config),
        _choice(WEIGHT_OBSERVERS, weight_observer, "weight_observer"),
        _choice(ACTIVATION_OBSERVERS, activation_observer, "activation_observer"),
        residual_bits,
    )
    example_inputs = dynamic_example(model, example_inputs)
    prepared = prepare_pt2e(capture(model, example_inputs), quantizer)
    calibrate(prepared, calibration_batches)
    return convert(prepared, example_inputs)


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
        msg = "no calibration batches were given; pass at least one batch of typical inputs"
        raise InputError(msg)


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
