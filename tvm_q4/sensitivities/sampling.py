"""Samples of a metric, batch by batch, with a checkpoint after each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvm_q4.errors import InputError
from tvm_q4.progress import ProgressBar
from tvm_q4.quantize.training.checkpoint import load_checkpoint, save_checkpoint
from tvm_q4.sensitivities.metric import Metric

Batch = tuple[Tensor, Tensor]


def draw_samples(
    metric: Metric,
    batches: Sequence[Batch],
    *,
    passes: int,
    seed: int,
    checkpoint: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Measure batches until the metric has enough samples.

    What is random depends on the seed and on a batch's number alone, so that a run that goes on
    from a checkpoint draws what an uninterrupted one does.

    Parameters
    ----------
    metric : Metric
    batches : sequence of (Tensor, Tensor)
        Images [n, C, H, W] and labels [n]; a pass looks at all of them.
    passes : int
        The most passes.
    seed : int
    checkpoint : Path, optional
        Written after each batch. Where it exists, sampling goes on there.
    settings : mapping, optional
        What the samples depend on (JSON values), compared before a checkpoint is used.
    progress : bool, optional
        See `tvm_q4.progress.ProgressBar`.

    Returns
    -------
    Tensor
        float64 [samples, layers, columns]; a sample is an image, or else the mean over the images
        of a pass.

    Raises
    ------
    InputError
        If a value is not finite, or the checkpoint does not fit or cannot be written.
    """
    chosen = dict(settings or {})
    found = load_checkpoint(checkpoint, chosen) if checkpoint is not None else None
    state = found or {"step": 0, "samples": None, "open": None}
    with ProgressBar("sensitivity", passes * len(batches), show=progress) as bar:
        bar.advance(state["step"])
        while not _finished(metric, state, len(batches), passes):
            number, batch = divmod(state["step"], len(batches))
            if metric.per_image:
                bar.step("images")
            else:
                bar.step(f"pass {number + 1}/{passes}")
            state = _next(metric, state, batches, batch, seed)
            if checkpoint is not None:
                save_checkpoint(checkpoint, chosen, state)
            bar.advance()
    samples = state["samples"]
    assert isinstance(samples, Tensor)
    return samples


def _next(
    metric: Metric, state: Mapping[str, Any], batches: Sequence[Batch], batch: int, seed: int
) -> dict[str, Any]:
    """Return the state after one more batch."""
    x, y = batches[batch]
    rows = metric.measure(x, y, _generator(seed, state["step"]))
    if not rows.isfinite().all():
        msg = f"batch {batch + 1} of {len(batches)} gives a sensitivity that is no finite number"
        raise InputError(f"{msg}; look for NaN or very large values in its images and in the model")
    samples, open_sample = state["samples"], None
    if not metric.per_image:
        rows = rows * (len(x) / sum(len(images) for images, _ in batches))
        if state["open"] is not None:
            rows = rows + state["open"]
        if batch < len(batches) - 1:
            rows, open_sample = rows[:0], rows
    samples = rows if samples is None else torch.cat([samples, rows])
    return {"step": state["step"] + 1, "samples": samples, "open": open_sample}


def _finished(metric: Metric, state: Mapping[str, Any], batches: int, passes: int) -> bool:
    number, batch = divmod(state["step"], batches)
    if batch or not number:
        return False
    return number >= passes or metric.enough(state["samples"])


def _generator(seed: int, step: int) -> torch.Generator:
    mixed = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))
