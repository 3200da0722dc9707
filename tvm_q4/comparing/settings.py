"""What is the same for all configs of a comparison."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm.target import Target

from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Arguments of `compare`, but for its configs and its output."""

    model: str
    target_text: str
    target: Target | CudaTarget
    log: tuple[str, ...]
    table: tuple[str, ...]
    calibrate: str | None
    data: str | None
    batch: int | None
    image_size: tuple[int, int] | None
    samples: int
    transform: Any
    classes: str | None
    rounds: int
    seconds: float
    threads: int | None
    seed: int
    progress: bool | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.seconds < 0:
            msg = f"rounds {self.rounds}, seconds {self.seconds}: need at least 1 and 0"
            raise InputError(msg)

    @property
    def is_zoo(self) -> bool:
        """Whether the float model has random weights."""
        return self.model.startswith("zoo:")

    @property
    def random_calibration(self) -> bool:
        """Whether presets and bit configs get scales from random images."""
        return self.is_zoo and self.calibrate is None

    def command(self, specs: list[str], output: Path) -> str:
        """The command line of this comparison; `specs` are ``NAME=SPEC``."""
        words = ["tvm-q4", "compare", self.model, "--target", self.target_text]
        for flag, values in (("config", specs), ("log", self.log), ("table", self.table)):
            for value in values:
                words += [f"--{flag}", value]
        for flag in ("calibrate", "data", "batch", "transform", "classes", "threads"):
            value = getattr(self, flag)
            if value is not None:
                words += [f"--{flag}", str(value)]
        if self.image_size is not None:
            words += ["--image-size", "x".join(map(str, self.image_size))]
        words += ["--samples", str(self.samples), "--rounds", str(self.rounds)]
        words += ["--seconds", f"{self.seconds:g}", "--seed", str(self.seed), "-o", str(output)]
        return shlex.join(words)
