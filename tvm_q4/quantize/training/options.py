"""Hyper-parameters of a training run, checked where they are written down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from tvm_q4.errors import InputError

Schedule = Literal["one-cycle", "cosine"]
Augmentation = Literal["crop-flip", "flip", "none"]
_MACHINE = ("device", "workers")
"""Options that say where a run happens, not what it computes."""


@dataclass(frozen=True)
class TrainingOptions:
    """Hyper-parameters of one run.

    Parameters
    ----------
    epochs : int
        Passes over the training data.
    learning_rate : float
        Highest learning rate. Batch normalisation that is folded wants a small one.
    schedule : {"one-cycle", "cosine"}
        "one-cycle" rises for `warmup` of all steps, then falls by a cosine; "cosine" only falls.
    warmup : float
        Share of all steps, 0 < warmup < 1.
    batch_size : int
        Images a step, over all processes.
    momentum : float
        Nesterov momentum of SGD; 0 for plain SGD.
    weight_decay : float
        On weights of convolutions and linear layers only, not on biases, normalisation or scales.
    augment : {"crop-flip", "flip", "none"}
        Random crops of the image with mirrored borders (an eighth of a side), random flips.
    distill : float
        Share of the loss that comes from the float model's answers, 0 to 1.
    temperature : float
        Softens both answers in that part of the loss.
    bfloat16 : bool
        Compute convolutions in bfloat16 (weights, sums and the optimizer stay float32).
    workers : int
        Processes that read images; 0 reads them in this one.
    device : str
        "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1".
    seed : int
        Seed of order, augmentation and dropout.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    epochs: int = 2
    learning_rate: float = 3e-4
    schedule: Schedule = "one-cycle"
    warmup: float = 0.1
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-5
    augment: Augmentation = "crop-flip"
    distill: float = 0.0
    temperature: float = 4.0
    bfloat16: bool = False
    workers: int = 0
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("workers", self.workers, 0)
        _at_least("seed", self.seed, 0)
        _choice("schedule", self.schedule, Schedule)
        _choice("augment", self.augment, Augmentation)
        _require("learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        _require("warmup", self.warmup, 0 < self.warmup < 1, "between 0 and 1")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and below 1")
        _require("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        _require("distill", self.distill, 0 <= self.distill <= 1, "between 0 and 1")
        _require("temperature", self.temperature, self.temperature > 0, "above 0")

    def settings(self) -> dict[str, Any]:
        """Return what the result depends on: a checkpoint goes on only where this agrees."""
        return {key: value for key, value in asdict(self).items() if key not in _MACHINE}


def _at_least(name: str, value: int, least: int) -> None:
    _require(name, value, value >= least, f"at least {least}")


def _choice(name: str, value: str, kind: Any) -> None:
    _require(name, repr(value), value in get_args(kind), f"one of {', '.join(get_args(kind))}")


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        msg = f"{name} is {value}; it must be {wanted}"
        raise InputError(msg)
