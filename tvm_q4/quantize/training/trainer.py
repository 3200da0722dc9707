"""The training loop: float networks and quantized ones, resumable, on one device or several."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tvm_q4.data import Dataset
from tvm_q4.errors import InputError
from tvm_q4.progress import ProgressBar
from tvm_q4.quantize.training.batches import EpochBatches
from tvm_q4.quantize.training.checkpoint import load_checkpoint, save_checkpoint
from tvm_q4.quantize.training.distillation import distillation_loss
from tvm_q4.quantize.training.distributed import Workplace, workplace
from tvm_q4.quantize.training.options import TrainingOptions
from tvm_q4.quantize.training.schedule import make_optimizer, make_schedule

logger = logging.getLogger(__name__)

SAVE_SECONDS = 300.0
"""Time between checkpoints within an epoch."""


@dataclass
class EpochResult:
    """What one epoch gave, over this process's share of the augmented images.

    Parameters
    ----------
    epoch : int
        From 1.
    loss : float
        Mean training loss.
    accuracy : float
        Share of images answered rightly, 0 to 1.
    seconds : float
        Time that it took, interruptions left out.
    """

    epoch: int
    loss: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0


def train(
    model: nn.Module,
    data: Dataset,
    options: TrainingOptions,
    *,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    progress: bool | None = None,
) -> list[EpochResult]:
    """Train `model` in place with SGD; it is on the CPU afterwards.

    The same seed gives the same batches whatever the number of processes. On a CPU, a run that
    goes on from its checkpoint ends bit for bit where an uninterrupted one does.

    Parameters
    ----------
    model : nn.Module
        Maps float32 [N, C, H, W] to logits [N, K]; in the mode that it is to be trained in.
    data : Dataset
        Network inputs with labels 0 to K - 1. Images beyond the last whole batch are left out.
    options : TrainingOptions
    teacher : nn.Module, optional
        Float model for ``options.distill`` > 0.
    checkpoint : Path, optional
        Written after each epoch, and every five minutes. Where it exists, training goes on there.
    settings : mapping, optional
        What else the result depends on (JSON values), compared before a checkpoint is used.
    on_epoch : callable, optional
        Called as ``on_epoch(epoch)``, from 0, before the first step of an epoch that this call
        makes; it must depend on the epoch alone.
    progress : bool, optional
        See `tvm_q4.progress.ProgressBar`.

    Returns
    -------
    list of EpochResult
        Of all epochs, those before the checkpoint included.

    Raises
    ------
    InputError
        If the data has no labels, labels beyond K, or fewer images than one batch, if the batch
        size is no multiple of the number of processes, or if the checkpoint does not fit.
    """
    _check_data(data, options)
    with workplace(options.device) as place, _own_random_state(place.device):
        _check_share(options, place)
        run = _Run(model, data, options, teacher, checkpoint, dict(settings or {}), place)
        run.resume()
        total = options.epochs * run.steps
        with ProgressBar("train", total, show=progress if place.rank == 0 else False) as bar:
            bar.advance(run.epoch * run.steps + run.step)
            while run.epoch < options.epochs:
                bar.step(f"epoch {run.epoch + 1}/{options.epochs}")
                if on_epoch is not None:
                    on_epoch(run.epoch)
                run.train_epoch(bar)
        model.to("cpu")
    return run.history


class _Run:
    """State of one run: everything that a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        options: TrainingOptions,
        teacher: nn.Module | None,
        checkpoint: Path | None,
        settings: dict[str, Any],
        place: Workplace,
    ) -> None:
        self.data, self.options, self.place, self.path = data, options, place, checkpoint
        self.settings = {**options.settings(), "images": data.count, **settings}
        layout = torch.channels_last
        self.model = model.to(place.device, memory_format=layout)
        self.teacher: nn.Module | None = None
        if teacher is not None and options.distill > 0:
            self.teacher = teacher.to(place.device, memory_format=layout)
        self.optimizer = make_optimizer(model, options)
        self.steps = data.count // options.batch_size
        self.schedule = make_schedule(self.optimizer, options, options.epochs * self.steps)
        self.epoch, self.step = 0, 0
        self.sums = {"loss": 0.0, "correct": 0.0, "seen": 0.0, "seconds": 0.0}
        self.history: list[EpochResult] = []
        self.forward: nn.Module = self.model
        if place.world > 1:
            self.forward = DistributedDataParallel(self.model)

    def train_epoch(self, bar: ProgressBar) -> None:
        """Make the steps that this epoch still lacks, then save."""
        place = self.place
        batches = EpochBatches(self.data, self.options, self.epoch, place.rank, place.world)
        started = saved = time.monotonic()
        for x, y in batches.from_step(self.step):
            self._train_step(x, y)
            self.step += 1
            bar.advance()
            now = time.monotonic()
            self.sums["seconds"] += now - started
            started = now
            if now - saved >= SAVE_SECONDS and self.step < self.steps:
                loss = self.sums["loss"] / self.sums["seen"]
                logger.info("step %d/%d: loss %.4f", self.step, self.steps, loss)
                self.save()
                saved = now
        self._finish_epoch()
        self.save()

    def _train_step(self, x: Tensor, y: Tensor) -> None:
        device, options = self.place.device, self.options
        # Dropout draws from torch's global state: seeded by the step, it needs no checkpoint.
        _seed(options.seed, self.epoch, self.step, self.place.rank)
        x = x.to(device, memory_format=torch.channels_last, non_blocking=True)
        y = y.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bfloat16):
            logits = self.forward(x).float()
            target = None
            if self.teacher is not None:
                with torch.no_grad():
                    target = self.teacher(x).float()
        loss = distillation_loss(logits, y, target, options.distill, options.temperature)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.sums["loss"] += loss.item() * len(y)
        self.sums["correct"] += int((logits.argmax(1) == y).sum())
        self.sums["seen"] += len(y)

    def _finish_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        seen = self.sums["seen"]
        loss, accuracy = self.sums["loss"] / seen, self.sums["correct"] / seen
        seconds = self.sums["seconds"]
        self.history.append(EpochResult(self.epoch, loss, accuracy, seconds))
        self.sums = dict.fromkeys(self.sums, 0.0)
        logger.info(
            "epoch %d/%d: loss %.4f, accuracy on augmented images %.2f %%, %.0f s, %.0f images/s",
            self.epoch, self.options.epochs, loss, 100 * accuracy, seconds,
            self.steps * self.options.batch_size / max(seconds, 1e-9),
        )  # fmt: skip

    def save(self) -> None:
        """Write the checkpoint, from the main process."""
        if self.path is None or self.place.rank != 0:
            return
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "history": [asdict(result) for result in self.history],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        save_checkpoint(self.path, self.settings, state)

    def resume(self) -> None:
        """Take over the checkpoint's state, if there is one."""
        state = None if self.path is None else load_checkpoint(self.path, self.settings)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.step, self.sums = state["epoch"], state["step"], state["sums"]
        self.history = [EpochResult(**entry) for entry in state["history"]]
        logger.info("going on at epoch %d, step %d of '%s'", self.epoch, self.step, self.path)


def _seed(*parts: int) -> None:
    """Seed torch's global state with a mix of `parts`."""
    torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]))


def _own_random_state(device: torch.device) -> Any:
    """Keep the caller's random state as it was."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _check_data(data: Dataset, options: TrainingOptions) -> None:
    if data.labels is None:
        msg = "the training data has no labels 'y'; training needs them"
        raise InputError(msg)
    if data.count < options.batch_size:
        msg = f"the training data has {data.count} images, fewer than one batch"
        raise InputError(f"{msg} of {options.batch_size}; use a smaller batch size")


def _check_share(options: TrainingOptions, place: Workplace) -> None:
    if options.batch_size % place.world:
        msg = f"batch_size is {options.batch_size}; it must be a multiple of the {place.world}"
        raise InputError(f"{msg} processes")
