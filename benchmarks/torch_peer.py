"""PyTorch's side of `cuda_resnet.py`: torchvision's networks in fp16, channels-last, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def time_network(name: str, batch: int, repeats: int, image_size: int = 224) -> dict[str, Any]:
    """Milliseconds of one inference, by events in the GPU's stream.

    Parameters
    ----------
    name : str
        Network of torchvision's, with random weights.
    batch, repeats : int
        Images of one inference, inferences that are counted.
    """
    from torchvision import models

    torch.backends.cudnn.benchmark = True
    network = getattr(models, name)(weights=None).eval().half().cuda()
    network = network.to(memory_format=torch.channels_last)
    shape = (batch, 3, image_size, image_size)
    x = torch.rand(shape, dtype=torch.half, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    compiled = torch.compile(network, mode="reduce-overhead", fullgraph=True)
    with torch.inference_mode():
        times = torch.tensor(_times(lambda: compiled(x), repeats))
    torch.compiler.reset()
    p10, median, p90 = torch.quantile(times, torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {"median_ms": median, "p10_ms": p10, "p90_ms": p90, "n": repeats}


def _times(call: Callable[[], Any], repeats: int, warmup: int = 20) -> list[float]:
    """Milliseconds of each call; the first ones compile and capture."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times
