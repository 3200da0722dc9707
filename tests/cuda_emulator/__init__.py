"""Run CUDA kernels that TVM generated on the CPU, and fail on what hardware would make wrong.

See README.md for what is modelled.
"""

from __future__ import annotations

from tests.cuda_emulator.build import compiler
from tests.cuda_emulator.errors import EmulationError
from tests.cuda_emulator.launch import Uninitialized, run

__all__ = ["EmulationError", "Uninitialized", "compiler", "run"]
