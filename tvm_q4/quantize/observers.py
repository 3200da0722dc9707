"""Observers: how a quantizer's scale is found from the values that it sees.

All of them are symmetric with zero point 0: `limit`, a magnitude, is mapped to `quant_max`, so that
``scale = limit / quant_max``. Activations have one limit, weights one an output channel (axis 0).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import ObserverBase

_MIN_SCALE = float(torch.finfo(torch.float32).eps)


class LimitObserver(ObserverBase):
    """Base: turns a limit, kept in the buffer `limit`, into scale and zero point.

    Parameters
    ----------
    dtype : torch.dtype
        Container of the integers (torch.int8 or torch.uint8, also for 4 bit).
    quant_min, quant_max : int
        Range of the integers, both included.
    qscheme : torch.qscheme
        ``per_tensor_symmetric`` or ``per_channel_symmetric``.
    is_dynamic : bool
        Always False; part of PT2E's calling convention.
    """

    limit: Tensor
    ch_axis = 0

    def __init__(
        self,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        self.quant_min, self.quant_max, self.qscheme = quant_min, quant_max, qscheme
        self.register_buffer("limit", torch.zeros(0))

    def magnitude(self, x: Tensor) -> Tensor:
        """Return max |x|: float32 [1], or [C] for weights [C, ...]."""
        x = x.detach().float()
        if self.qscheme == torch.per_channel_symmetric:
            return x.reshape(x.shape[0], -1).abs().amax(1)
        return x.abs().amax().reshape(1)

    def find_limit(self) -> Tensor:
        """Return the limit from what was observed: float32 [1] or [C]."""
        return self.limit

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scales (float32) and zero points (int64, all zero), each [1] or [C]."""
        limit = self.find_limit()
        if limit.numel() == 0:
            msg = "a quantizer has seen no data; run calibration batches before converting"
            raise RuntimeError(msg)
        scale = (limit / self.quant_max).clamp_min(_MIN_SCALE)
        return scale, torch.zeros(scale.shape, dtype=torch.int64)


class MinMaxObserver(LimitObserver):
    """The largest magnitude ever seen."""

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x` and return it."""
        now = self.magnitude(x)
        self.limit = now if self.limit.numel() == 0 else torch.maximum(self.limit, now)
        return x


class MseWeightObserver(LimitObserver):
    """Per channel, the limit with the smallest squared quantization error.

    The limit is searched among `_STEPS` equal fractions of the largest magnitude, down to a
    quarter of it.
    """

    _STEPS = 100

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Observe the weight `x` [C, ...] and return it; one just seen is not searched again."""
        if self._seen is None or not torch.equal(x, self._seen):
            self._seen = x.detach().clone()
            self.limit = self._best_limit(self._seen.float())
        return x

    def _best_limit(self, x: Tensor) -> Tensor:
        top = self.magnitude(x)
        flat = x.reshape(len(top), -1)
        best, limit = torch.full_like(top, torch.inf), top.clone()
        for step in range(self._STEPS, self._STEPS // 4, -1):
            candidate = top * (step / self._STEPS)
            scale = (candidate / self.quant_max).clamp_min(_MIN_SCALE)[:, None]
            rounded = (flat / scale).round().clamp(self.quant_min, self.quant_max) * scale
            error = (rounded - flat).square().sum(1)
            limit = torch.where(error < best, candidate, limit)
            best = torch.minimum(error, best)
        return limit


class HistogramObserver(LimitObserver):
    """Base of observers that choose the limit from a histogram of magnitudes.

    The histogram covers ``[0, top]``. When larger values come, `top` is doubled and pairs of
    bins are merged, so that counts stay exact.
    """

    _BINS = 8192

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.top = 0.0
        self.counts = torch.zeros(self._BINS, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x` and return it."""
        values = x.detach().float().abs().flatten()
        largest = float(values.max())
        if self.top == 0.0:
            self.top = largest
        while 0.0 < self.top < largest:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.top *= 2.0
        if self.top > 0.0:
            self.counts += torch.histc(values, self._BINS, 0.0, self.top).double()
        self.limit = torch.tensor([self.top])
        return x

    def centres(self) -> Tensor:
        """Return the middle of each bin, float64 [bins]."""
        return (torch.arange(self._BINS, dtype=torch.float64) + 0.5) * (self.top / self._BINS)


class PercentileObserver(HistogramObserver):
    """The magnitude below which 99.99 % of the values lie."""

    _SHARE = 0.9999

    def find_limit(self) -> Tensor:
        """Return the percentile, float32 [1]."""
        if self.top == 0.0:
            return self.limit
        share = self.counts.cumsum(0) / self.counts.sum()
        index = int((share < self._SHARE).sum())
        return torch.tensor([(index + 1) * self.top / self._BINS])


class MseObserver(HistogramObserver):
    """The limit with the smallest squared error of rounding and clipping, by the histogram.

    It is searched among `_STEPS` equal fractions of the range seen, and then more finely
    around the best of them.
    """

    _STEPS = 100
    _FINE_STEPS = 20

    def find_limit(self) -> Tensor:
        """Return the best limit, float32 [1]."""
        if self.top == 0.0:
            return self.limit
        step = self.top / self._STEPS
        coarse = torch.arange(1, self._STEPS + 1, dtype=torch.float64) * step
        offsets = torch.linspace(-1.0, 1.0, 2 * self._FINE_STEPS + 1, dtype=torch.float64)[1:-1]
        fine = self._best(coarse) + offsets * step
        return self._best(fine).float().reshape(1)

    def _best(self, limits: Tensor) -> Tensor:
        centres = self.centres()
        scale = (limits / self.quant_max)[:, None]
        rounded = (centres / scale).round().clamp(max=self.quant_max) * scale
        error = ((rounded - centres).square() * self.counts).sum(1)
        return limits[error.argmin()]


WEIGHT_OBSERVERS = {"minmax": MinMaxObserver, "mse": MseWeightObserver}
ACTIVATION_OBSERVERS = {
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
    "mse": MseObserver,
}
