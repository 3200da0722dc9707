"""The float model as a row of a comparison: accuracy in PyTorch, size and operations."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tvm_q4.data import Dataset, open_data
from tvm_q4.errors import InputError
from tvm_q4.evaluation import TOP, rank_of
from tvm_q4.frontend.torch_export import import_exported
from tvm_q4.model_report import describe_model
from tvm_q4.progress import ProgressBar
from tvm_q4.quantize.float_model import FloatModel

_BATCH = 100
logger = logging.getLogger(__name__)


def evaluate_float(
    source: FloatModel, data: str, transform: Any, classes: str | None, progress: bool | None
) -> dict[str, Any]:
    """``top1``, ``top5``, ``n`` and ``correct`` of a float model.

    A model with one fixed batch leaves out the images beyond the last whole one.

    Raises
    ------
    InputError
        If the data cannot be used, has no labels, or too few images for the model's batch.
    """
    dataset = labelled(source, data, transform, classes)
    assert dataset.labels is not None
    size = source.batch or _BATCH
    total = dataset.count - (dataset.count % size if source.batch else 0)
    if not total:
        raise InputError(f"data '{data}' has {dataset.count} images, the model takes {size} a run")
    ranks = np.empty(total, np.int64)
    network = source.program.module()
    with torch.no_grad(), ProgressBar("evaluate float", total, show=progress) as bar:
        for first, x in dataset.batches(size, total):
            part = slice(first, first + len(x))
            logits = network(torch.from_numpy(np.ascontiguousarray(x))).numpy()
            _check_labels(dataset.labels, logits.shape[1])
            ranks[part] = rank_of(logits, dataset.labels[part])
            bar.advance(len(x))
    hits = int((ranks == 0).sum())
    top5 = int((ranks < TOP).sum()) / total
    return {"top1": hits / total, "top5": top5, "n": total, "correct": hits}


def _check_labels(labels: NDArray[np.int64], classes: int) -> None:
    if labels.max() >= classes:
        msg = f"label {labels.max()} is not among the model's {classes} classes (0..{classes - 1})"
        raise InputError(msg)


def labelled(source: FloatModel, data: str, transform: Any, classes: str | None) -> Dataset:
    """Images and labels for a float model, checked.

    Raises
    ------
    InputError
        If the data cannot be used or has no labels.
    """
    chosen = transform if transform is not None else source.metadata.get("transform")
    dataset = open_data(data, source.input, transform=chosen, classes=classes)
    if dataset.labels is None:
        raise InputError(f"data '{data}' has no labels 'y'; accuracy needs them")
    return dataset


def float_layers(source: FloatModel, image_size: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Layers of a float model, in the words of a library's metadata."""
    mod = import_exported(source.program, image_size=image_size)
    layers: list[dict[str, Any]] = describe_model(mod)["layers"]
    return layers
