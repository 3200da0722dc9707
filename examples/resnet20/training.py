"""The training loop that float training and quantization-aware training share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Split, augment, normalise


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one run.

    Parameters
    ----------
    epochs : int
    peak_lr : float
        Highest learning rate, reached after `warmup` of the steps, then annealed by a cosine to 0.
    warmup : float
        Share of all steps with a rising learning rate, 0..1.
    weight_decay : float
        Applied to convolution and linear weights only, not to biases or normalisation.
    batch : int
    momentum : float
        Nesterov momentum.
    bf16 : bool
        Compute convolutions in bfloat16 (weights, sums and the optimizer stay float32).
    images_per_epoch : int or None
        Random subset of the train set each epoch; None for all of it.
    """

    epochs: int
    peak_lr: float
    warmup: float = 0.2
    weight_decay: float = 5e-4
    batch: int = 256
    momentum: float = 0.9
    bf16: bool = True
    images_per_epoch: int | None = None


class Trainer:
    """SGD with a one-cycle learning rate; every epoch ends in a checkpoint that can be resumed.

    Parameters
    ----------
    model : nn.Module
        Maps float32 [N, 3, 32, 32] to logits [N, 10].
    train : Split
    recipe : Recipe
    checkpoint : Path
        Written after each epoch; read first if it exists.
    seed : int
        Seed of shuffling and augmentation.
    on_epoch : callable, optional
        Called as ``on_epoch(epoch)`` before each epoch (QAT freezes its ranges with it).
    """

    def __init__(
        self,
        model: nn.Module,
        train: Split,
        recipe: Recipe,
        checkpoint: Path,
        seed: int = 0,
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.train, self.recipe, self.checkpoint = model, train, recipe, checkpoint
        self.generator = torch.Generator().manual_seed(seed)
        self.on_epoch = on_epoch
        self.optimizer = torch.optim.SGD(
            _parameter_groups(model, recipe.weight_decay),
            lr=recipe.peak_lr,
            momentum=recipe.momentum,
            nesterov=True,
        )
        images = recipe.images_per_epoch or len(train)
        self.steps = images // recipe.batch
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=recipe.peak_lr,
            total_steps=recipe.epochs * self.steps,
            pct_start=recipe.warmup,
            cycle_momentum=False,
            final_div_factor=1e3,
        )

    def run(self) -> None:
        """Train to the last epoch, from the checkpoint where there is one."""
        for epoch in range(self._resume(), self.recipe.epochs):
            if self.on_epoch is not None:
                self.on_epoch(epoch)
            start = time.perf_counter()
            loss, correct = self._epoch()
            seconds = time.perf_counter() - start
            images = self.steps * self.recipe.batch
            print(
                f"{self.checkpoint.stem} epoch {epoch + 1}/{self.recipe.epochs}: loss {loss:.4f}, "
                f"train accuracy {correct:.4f}, {seconds:.0f} s, {images / seconds:.0f} images/s",
                flush=True,
            )
            self._save(epoch + 1)

    def _epoch(self) -> tuple[float, float]:
        """Return the mean loss and the accuracy on the augmented images of one epoch."""
        loss_sum, correct, seen = 0.0, 0, 0
        for x, y in self._batches():
            with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
                logits = self.model(x)
            loss = F.cross_entropy(logits.float(), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            loss_sum += loss.item() * len(y)
            correct += int((logits.argmax(1) == y).sum())
            seen += len(y)
        return loss_sum / seen, correct / seen

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.train), generator=self.generator)
        for i in range(self.steps):
            index = order[i * self.recipe.batch : (i + 1) * self.recipe.batch]
            yield normalise(augment(self.train.x[index], self.generator)), self.train.y[index]

    def _save(self, epoch: int) -> None:
        state = {
            "epoch": epoch,
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _resume(self) -> int:
        """Load the checkpoint if there is one and return the next epoch."""
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            msg = f"{self.checkpoint} was written with another recipe: {state['recipe']}; remove it"
            raise ValueError(msg)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        return state["epoch"]


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


@torch.no_grad()
def count_correct(model: nn.Module, data: Split, batch: int = 250) -> int:
    """Return how many images of `data` the model classifies correctly (in float32).

    `len(data)` need not be a multiple of `batch`. The caller puts the model into evaluation mode.
    """
    correct = 0
    for start in range(0, len(data), batch):
        logits = model(normalise(data.x[start : start + batch]))
        correct += int((logits.argmax(1) == data.y[start : start + batch]).sum())
    return correct
