"""Training batches: shuffled, augmented, and a function of seed, epoch and step alone.

Nothing here keeps a random state, so a run that was interrupted goes on with exactly the batches
that it would have had, and several processes share one batch without talking to each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from tvm_q4.data import Dataset
from tvm_q4.quantize.training.options import Augmentation, TrainingOptions

_ORDER, _IMAGES = 1, 2
"""What a random generator is for; kept apart so that no two draw the same numbers."""


class EpochBatches(TorchDataset[tuple[Tensor, Tensor]]):  # type: ignore[misc]  # torch is untyped
    """One process's share of the batches of one epoch, by step.

    Parameters
    ----------
    data : Dataset
        With labels.
    options : TrainingOptions
    epoch : int
    rank, world : int
        This process takes every `world`-th image of a batch, from the `rank`-th on.
    """

    def __init__(
        self, data: Dataset, options: TrainingOptions, epoch: int, rank: int = 0, world: int = 1
    ) -> None:
        self._data, self._options, self._epoch = data, options, epoch
        self._share = slice(rank, None, world)
        self._order = np.random.default_rng([_ORDER, options.seed, epoch]).permutation(data.count)

    def __len__(self) -> int:
        return self._data.count // self._options.batch_size

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images float32 [n, C, H, W] and labels int64 [n]."""
        size = self._options.batch_size
        index = self._order[step * size : (step + 1) * size]
        rng = np.random.default_rng([_IMAGES, self._options.seed, self._epoch, step])
        draws = rng.random((3, size), dtype=np.float32)[:, self._share]
        index = index[self._share]
        assert self._data.labels is not None
        x = augment(self._data.take(index), self._options.augment, draws)
        return torch.from_numpy(x), torch.from_numpy(self._data.labels[index])

    def from_step(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches from `step` to the end, read ahead by the worker processes."""
        workers = self._options.workers
        steps = range(step, len(self))
        yield from DataLoader(self, batch_size=None, sampler=steps, num_workers=workers)


def augment(x: NDArray, kind: Augmentation, draws: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images with random crops and flips.

    A crop is taken from the image with an eighth of its side mirrored around it, so that no value
    appears that the images do not have.

    Parameters
    ----------
    x : float32 ndarray [N, C, H, W]
    kind : {"crop-flip", "flip", "none"}
    draws : float32 ndarray [3, N]
        Uniform in [0, 1): position of the crop in rows and in columns, and whether to flip.
    """
    if kind == "none":
        return np.ascontiguousarray(x, np.float32)
    height, width = x.shape[2:]
    rows, columns = np.arange(height)[None], np.arange(width)[None]
    columns = np.where(draws[2][:, None] < 0.5, columns[:, ::-1], columns)
    if kind == "crop-flip":
        above, left = height // 8, width // 8
        x = np.pad(x, ((0, 0), (0, 0), (above, above), (left, left)), mode="reflect")
        rows = rows + (draws[0] * (2 * above + 1)).astype(np.int64)[:, None]
        columns = columns + (draws[1] * (2 * left + 1)).astype(np.int64)[:, None]
    picked = x.transpose(0, 2, 3, 1)[
        np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return picked.transpose(0, 3, 1, 2).astype(np.float32, copy=False)
