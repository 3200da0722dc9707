"""A built candidate: a folder with its code and its constants, complete in itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.tune.case import numbered


@dataclass(frozen=True)
class Kernel:
    """The folder of one candidate.

    ``kernel.so`` holds its function, ``constants.npz`` the constant arguments, ``kernel.json`` the
    function's name and the scratch tensors. The function takes inputs, constants, scratch tensors
    and outputs, in this order.
    """

    folder: Path

    @property
    def library(self) -> Path:
        """The shared object."""
        return self.folder / "kernel.so"

    def write(
        self,
        symbol: str,
        constants: Sequence[NDArray],
        scratch: Sequence[tuple[Sequence[int], str]],
    ) -> None:
        """Write what goes with the code."""
        facts = {"symbol": symbol, "scratch": [[list(shape), dtype] for shape, dtype in scratch]}
        (self.folder / "kernel.json").write_text(json.dumps(facts), encoding="utf-8")
        arrays = {f"c{i}": array for i, array in enumerate(constants)}
        np.savez(self.folder / "constants.npz", **arrays)  # type: ignore[arg-type]

    def facts(self) -> dict[str, Any]:
        """``symbol`` and ``scratch``."""
        return json.loads((self.folder / "kernel.json").read_text(encoding="utf-8"))

    def constants(self) -> list[NDArray]:
        """The constant arguments."""
        with np.load(self.folder / "constants.npz") as file:
            return numbered(file, "c")

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
