"""Where a run happens: one process on a device, or several that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from tvm_q4.errors import EnvironmentMismatch, InputError


@dataclass(frozen=True)
class Workplace:
    """Place of this process among those of a run, and its device.

    Parameters
    ----------
    rank : int
        0 writes checkpoints and speaks to the user.
    world : int
        Number of processes.
    device : torch.device
    """

    rank: int
    world: int
    device: torch.device


def is_main_process() -> bool:
    """Return whether this process is the one that writes files (the only one without torchrun)."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def workplace(device: str) -> Iterator[Workplace]:
    """Join the processes of ``torchrun``, if it started this one, for as long as the context lasts.

    Parameters
    ----------
    device : str
        "auto", "cpu", "cuda" or "cuda:<index>"; each of several processes takes its own GPU.

    Raises
    ------
    InputError
        If the device's name is unknown.
    EnvironmentMismatch
        If there is no such GPU.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _find_device(device, int(os.environ.get("LOCAL_RANK", "0")) if world > 1 else None)
    if world == 1:
        yield Workplace(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Workplace(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def _find_device(name: str, local_rank: int | None) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        msg = f"device is {name!r}; use auto, cpu, cuda or cuda:<index>"
        raise InputError(msg)
    if kind == "cpu":
        return torch.device("cpu")
    number = int(index) if index else (local_rank or 0)
    if number >= torch.cuda.device_count():
        msg = f"device '{name}' is not there: torch sees {torch.cuda.device_count()} GPUs"
        raise EnvironmentMismatch(f"{msg}; use cpu")
    return torch.device("cuda", number)
