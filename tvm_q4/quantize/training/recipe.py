"""Quantization-aware training of a float model, from calibration to program (`train_qat`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from tvm_q4.data import Dataset
from tvm_q4.errors import InputError
from tvm_q4.quantize.config import BitConfig, load_bit_config
from tvm_q4.quantize.ptq import capture, convert, dynamic_example
from tvm_q4.quantize.qat import Method, freeze_batch_norm, prepare_qat
from tvm_q4.quantize.training.checkpoint import digest
from tvm_q4.quantize.training.options import TrainingOptions
from tvm_q4.quantize.training.trainer import EpochResult, train


def train_qat(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Tensor, ...],
    calibration_batches: Iterable[Tensor],
    train_data: Dataset,
    config: BitConfig | str,
    options: TrainingOptions | None = None,
    *,
    method: Method = "lsq",
    batch_norm: Literal["fold", "train"] = "fold",
    bn_freeze_epoch: int | None = None,
    residual_bits: int = 8,
    checkpoint: Path | None = None,
    progress: bool | None = None,
) -> tuple[ExportedProgram, list[EpochResult]]:
    """Train a float model with its quantization and return the quantized program.

    Parameters
    ----------
    model : nn.Module or ExportedProgram
        Trained float network; it is left as it is, and is the teacher of a distillation.
    example_inputs, calibration_batches, config, residual_bits
        As in `quantize_ptq`; the batches give the first scales.
    train_data : Dataset
        Network inputs with labels.
    options : TrainingOptions, optional
        In float32 (``bfloat16`` off).
    method, batch_norm
        As in `prepare_qat`.
    bn_freeze_epoch : int, optional
        With ``batch_norm="train"``, the epoch (from 0) from which on batch normalisation uses its
        running statistics; never where None.
    checkpoint, progress
        As in `tvm_q4.quantize.training.train`.

    Returns
    -------
    ExportedProgram
        As of `quantize_ptq`.
    list of EpochResult

    Raises
    ------
    InputError
        As `prepare_qat` and `train`, or if the labels do not fit the network's output.
    UnsupportedError
        As `prepare_qat`.
    """
    options, config = options or TrainingOptions(), load_bit_config(config)
    if options.bfloat16:
        msg = "bfloat16 is on, but its 8 bits of mantissa do not hold the grids of 8-bit numbers"
        raise InputError(f"{msg}; train with quantization in float32")
    example_inputs = dynamic_example(model, example_inputs)
    prepared = prepare_qat(
        model, example_inputs, calibration_batches, config,
        method=method, batch_norm=batch_norm, residual_bits=residual_bits,
    )  # fmt: skip
    teacher = capture(model, example_inputs)
    check_labels(teacher, example_inputs, train_data.labels, "the training data")
    state = model.state_dict() if isinstance(model, nn.Module) else model.state_dict
    settings = {
        "model": digest(state),
        "config": config.to_dict(),
        "method": method,
        "batch_norm": batch_norm,
        "bn_freeze_epoch": bn_freeze_epoch,
        "residual_bits": residual_bits,
    }

    def begin_epoch(epoch: int) -> None:
        if bn_freeze_epoch is not None and epoch >= bn_freeze_epoch:
            freeze_batch_norm(prepared)

    history = train(
        prepared, train_data, options, teacher=teacher, checkpoint=checkpoint, settings=settings,
        on_epoch=begin_epoch, progress=progress,
    )  # fmt: skip
    return convert(prepared, example_inputs), history


def check_labels(
    network: Callable[..., object],
    example_inputs: tuple[Tensor, ...],
    labels: NDArray | None,
    where: str,
) -> None:
    """Refuse a network that is no classifier, and labels beyond its classes.

    Parameters
    ----------
    network : callable
        From a batch to its output.
    example_inputs : tuple of Tensor
        A batch that it takes.
    labels : int64 ndarray [N] or None
    where : str
        What has the labels, for error messages.

    Raises
    ------
    InputError
        If the output is not [N, classes] or a label is too large.
    """
    with torch.no_grad():
        logits = network(*example_inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        msg = "the network's output is not [N, classes]; only classifiers have a loss by labels"
        raise InputError(msg)
    classes = logits.shape[1]
    if labels is not None and labels.max() >= classes:
        msg = f"label {labels.max()} of {where} is not among the network's {classes}"
        raise InputError(f"{msg} classes (0..{classes - 1})")
