"""Compare what nvcc made of a kernel with what the tile model assumed, for SASS gates.

`occupancy_loss` is the gate: the compiled kernel may take other registers than estimated, as long
as an SM holds (nearly) as many CTAs as predicted. One of five or more hardly changes a prediction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tvm_q4.schedules.cuda.cost import Resources, Tile, blocks_per_sm, resources
from tvm_q4.schedules.cuda.device import Device

SUFFICIENT = 0.8
"""Part of the predicted CTAs an SM that a compiled kernel must reach."""


@dataclass(frozen=True)
class Usage:
    """A kernel in a cubin: registers; bytes of stack, static shared memory and local memory."""

    registers: int
    stack: int
    shared: int
    local: int


_FUNCTION = re.compile(
    r"Function (?P<name>\S+):\s+REG:(?P<reg>\d+) STACK:(?P<stack>\d+) "
    r"SHARED:(?P<shared>\d+) LOCAL:(?P<local>\d+)"
)


def kernel_usage(text: str) -> dict[str, Usage]:
    """Kernels by name, from what ``cuobjdump --dump-resource-usage`` prints."""
    return {
        match["name"]: Usage(*(int(match[key]) for key in ("reg", "stack", "shared", "local")))
        for match in _FUNCTION.finditer(text)
    }


def occupancy_loss(
    used: Resources, tile: Tile, device: Device, b_ratio: float = 1.0, residual: bool = False
) -> str | None:
    """What a compiled kernel takes too much of, in one line; None where predictions hold.

    Parameters
    ----------
    used : Resources
        Threads of the launch, static plus dynamic shared memory, registers as compiled.
    tile, device, b_ratio, residual
        As given to the tile model.
    """
    assumed = resources(tile, device.family, b_ratio, residual)
    wanted, found = blocks_per_sm(assumed, device), blocks_per_sm(used, device)
    if found >= SUFFICIENT * wanted:
        return None
    return f"{found} CTAs an SM of {device.name}, not {wanted}: {used}, assumed {assumed}"
