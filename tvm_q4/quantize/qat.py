"""Quantization-aware training: a graph to train on, with fake quantizers (`prepare_qat`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e import (
    FakeQuantize,
    move_exported_model_to_eval,
    move_exported_model_to_train,
)
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e

from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.quantize import graph as g
from tvm_q4.quantize.config import BitConfig, load_bit_config
from tvm_q4.quantize.fake_quantize import LearnedStepFakeQuantize, MovingAverageObserver
from tvm_q4.quantize.observers import MseObserver, MseWeightObserver
from tvm_q4.quantize.ptq import calibrate, capture, dynamic_example
from tvm_q4.quantize.quantizer import Q4Quantizer

Method = Literal["lsq", "fake-quantize"]

_PT2E_EPS = 1e-5
_TRAINING_ARGUMENT = 5
"""Position of batch_norm's training flag."""

_FAKE_QUANTIZERS = {
    "lsq": (
        LearnedStepFakeQuantize.with_args(observer=MseWeightObserver),
        LearnedStepFakeQuantize.with_args(observer=MseObserver),
    ),
    "fake-quantize": (
        FakeQuantize.with_args(observer=MovingAverageObserver),
        FakeQuantize.with_args(observer=MovingAverageObserver),
    ),
}
"""For weights and for activations, by method."""


def prepare_qat(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Tensor, ...],
    calibration_batches: Iterable[Tensor],
    config: BitConfig | str,
    *,
    method: Method = "lsq",
    batch_norm: Literal["fold", "train"] = "fold",
    residual_bits: int = 8,
) -> GraphModule:
    """Return a graph with fake quantizers, to be trained by any loop and then given to `convert`.

    Parameters
    ----------
    model : nn.Module or ExportedProgram
        Trained float network. Its parameters are copied. A program can only be folded.
    example_inputs, calibration_batches, config, residual_bits
        As in `quantize_ptq`; the batches give the first scales.
    method : {"lsq", "fake-quantize"}
        "lsq" learns the scales, "fake-quantize" takes them from moving averages of the ranges.
    batch_norm : {"fold", "train"}
        "fold" folds batch normalisation into the convolutions before training: what is trained is
        what is deployed, and a step costs half. "train" keeps it, with batch statistics, and
        folds it in `convert` (PT2E's own scheme; eps must be 1e-5).

    Returns
    -------
    GraphModule
        All parameters, with "lsq" the scales of the quantizers included, are trainable. Do not
        call its ``train`` or ``eval``.

    Raises
    ------
    UnsupportedError
        If ``batch_norm="train"`` and `model` is a program or a layer's eps is not 1e-5.
    InputError
        As `quantize_ptq`.
    """
    if method not in _FAKE_QUANTIZERS:
        msg = f"method is {method!r}; use one of {', '.join(_FAKE_QUANTIZERS)}"
        raise InputError(msg)
    quantizer = Q4Quantizer(load_bit_config(config), *_FAKE_QUANTIZERS[method], residual_bits)
    folded = batch_norm == "fold"
    if not folded:
        _check_trainable(model)
    example_inputs = dynamic_example(model, example_inputs)
    graph = capture(model, example_inputs, training=not folded)
    prepared = prepare_pt2e(graph, quantizer) if folded else prepare_qat_pt2e(graph, quantizer)
    move_exported_model_to_eval(prepared)
    calibrate(prepared, calibration_batches)
    if not folded:
        move_exported_model_to_train(prepared)
    for module in prepared.modules():
        if isinstance(module, LearnedStepFakeQuantize):
            module.start_learning()
    for parameter in prepared.parameters():
        parameter.requires_grad_(True)
    return prepared


def freeze_batch_norm(prepared: GraphModule) -> None:
    """Let batch normalisation use its running statistics from now on, and not change them."""
    for node in prepared.graph.nodes:
        if g.called(node, g.BATCH_NORMS):
            node.update_arg(_TRAINING_ARGUMENT, False)
    prepared.recompile()


def _check_trainable(model: nn.Module | ExportedProgram) -> None:
    """Refuse what PT2E's scheme cannot do: it folds with eps 1e-5, whatever the layer says."""
    if isinstance(model, ExportedProgram):
        msg = "an exported program has fixed batch statistics; use batch_norm='fold' or a module"
        raise UnsupportedError(msg)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.eps != _PT2E_EPS:
            msg = (
                f"batch normalisation '{name}' has eps {module.eps}; PT2E's training scheme takes "
                f"{_PT2E_EPS} only; use batch_norm='fold'"
            )
            raise UnsupportedError(msg)
