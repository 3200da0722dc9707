"""Fake quantization for quantization-aware training: learned step sizes, or observed ranges.

Learned: Esser et al., "Learned Step Size Quantization", ICLR 2020 (gradient of the step, and its
scale ``1 / sqrt(values * quant_max)``, values being those of one weight channel or of one image,
section 2.2). The step starts where an observer of `observers` puts it.

Observed: PT2E's `FakeQuantize` over `MovingAverageObserver` (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
section 3.1), on the same grids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import FakeQuantizeBase

from tvm_q4.quantize.observers import LimitObserver

_MIN_SCALE = float(torch.finfo(torch.float32).eps)


class _LearnedStep(torch.autograd.Function):
    """``clamp(round(x / scale)) * scale`` with a straight-through gradient for both inputs."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x: Tensor, scale: Tensor, low: int, high: int, values: int
    ) -> Tensor:
        ratio = x / scale
        rounded = ratio.round().clamp_(low, high)
        ctx.save_for_backward(ratio, rounded, scale)
        ctx.range, ctx.values = (low, high), values
        return rounded * scale

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        ratio, rounded, scale = ctx.saved_tensors
        low, high = ctx.range
        inside = grad * ((ratio >= low) & (ratio <= high))
        per_value = grad * rounded - inside * ratio
        share = 1.0 / (ctx.values * high) ** 0.5
        grad_scale = per_value.sum_to_size(scale.shape) * share
        return inside, grad_scale.to(scale.dtype), None, None, None


class LearnedStepFakeQuantize(FakeQuantizeBase):
    """Observes first; after `start_learning`, quantizes with a trainable scale.

    Parameters
    ----------
    observer : callable
        Constructor of a `LimitObserver`, which finds the first scale.
    **kwargs
        Passed to `observer`: dtype, quant_min, quant_max, qscheme, is_dynamic.
    """

    ch_axis = 0
    scale: nn.Parameter

    def __init__(self, observer: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__()
        self.observer = observer(**kwargs)
        self.dtype, self.qscheme = self.observer.dtype, self.observer.qscheme
        self.quant_min, self.quant_max = self.observer.quant_min, self.observer.quant_max
        self.learning = False

    def start_learning(self) -> None:
        """Fix the observed scale as the start value of the trainable one: float32 [1] or [C]."""
        self.scale = nn.Parameter(self.observer.calculate_qparams()[0])
        self.learning = True

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scales (float32) and zero points (int64, all zero), each [1] or [C]."""
        if not self.learning:
            return self.observer.calculate_qparams()
        scale = self.scale.detach().clamp_min(_MIN_SCALE)
        return scale, torch.zeros(scale.shape, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` unchanged while observing, else fake-quantized in its own dtype."""
        if not self.learning:
            return self.observer(x)
        scale = self.scale.clamp_min(_MIN_SCALE).to(x.dtype)
        if self.qscheme == torch.per_channel_symmetric:
            scale = scale.reshape(-1, *[1] * (x.ndim - 1))
        values = x[0].numel()
        return _LearnedStep.apply(x, scale, self.quant_min, self.quant_max, values)


class MovingAverageObserver(LimitObserver):
    """The largest magnitude of a batch, averaged over batches."""

    _SHARE = 0.01

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x` and return it."""
        now = self.magnitude(x)
        self.limit = now if self.limit.numel() == 0 else self.limit.lerp(now, self._SHARE)
        return x
