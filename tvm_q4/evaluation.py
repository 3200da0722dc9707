"""``evaluate``: accuracy of a compiled library on labelled images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.data import Dataset, open_data
from tvm_q4.errors import InputError
from tvm_q4.library import Library, load
from tvm_q4.progress import ProgressBar
from tvm_q4.transforms import Transform

TOP = 5


def evaluate(
    library: Library | str | Path,
    data: str | Path | tuple[NDArray, NDArray],
    *,
    transform: str | Mapping[str, Any] | Transform | None = None,
    classes: str | Path | None = None,
    limit: int | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy.

    Parameters
    ----------
    library : Library, str or Path
        A library or its file.
    data : str, Path or (x, y)
        A DATA argument (see `tvm_q4.data.open_data`), or inputs [N, C, H, W] and labels [N].
    transform : str, mapping or Transform, optional
        For images; the one that the library's metadata names where None.
    classes : str or Path, optional
        Names of class folders in the order of their indices.
    limit : int, optional
        Only the first so many images.
    progress : bool, optional
        Show a progress bar on standard error; where None, if that is a terminal.

    Returns
    -------
    dict
        ``top1``, ``top5`` (fractions; among fewer than six classes the label always counts for
        ``top5``), ``n``, ``correct`` (top-1 hits), ``seconds`` (decoding included).

    Raises
    ------
    InputError
        If the data cannot be used, has no labels, or has labels beyond the library's classes.
    """
    lib = library if isinstance(library, Library) else load(library)
    dataset = _open(lib, data, transform, classes)
    labels = _labels_of(dataset, lib, data)
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1")
    total = dataset.count if limit is None else min(limit, dataset.count)
    ranks = np.empty(total, np.int64)
    start = time.perf_counter()
    with ProgressBar("evaluate", total, show=progress) as bar:
        for first, x in dataset.batches(lib.input.batch, total):
            part = slice(first, first + len(x))
            ranks[part] = rank_of(lib.logits(lib.run(x)), labels[part])
            bar.advance(len(x))
    hits = int((ranks == 0).sum())
    return {
        "top1": hits / total,
        "top5": int((ranks < TOP).sum()) / total,
        "n": total,
        "correct": hits,
        "seconds": time.perf_counter() - start,
    }


def rank_of(logits: NDArray, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the label, by larger logit, then by smaller index.

    Parameters
    ----------
    logits : ndarray [N, K]
    labels : int64 ndarray [N], 0 to K - 1
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)


def _open(lib: Library, data: Any, transform: Any, classes: str | Path | None) -> Dataset:
    if isinstance(data, tuple):
        x, y = np.asarray(data[0]), np.asarray(data[1])
        if y.shape != x.shape[:1] or not len(y):
            shapes = f"{list(x.shape)} inputs and {list(y.shape)} labels"
            msg = f"data has {shapes}; give one label an image"
            raise InputError(msg)
        return Dataset(len(x), lambda start, stop: x[start:stop], y.astype(np.int64))
    chosen = transform if transform is not None else lib.metadata["input"]["transform"]
    return open_data(data, lib.input, transform=chosen, classes=classes)


def _labels_of(dataset: Dataset, lib: Library, data: Any) -> NDArray[np.int64]:
    if dataset.labels is None:
        raise InputError(f"data '{data}' has no labels 'y'; accuracy needs them")
    count = lib.metadata["output"]["shape"][-1]
    if len(lib.metadata["output"]["shape"]) != 2:
        shape = lib.metadata["output"]["shape"]
        raise InputError(f"the library's output {shape} is not [N, classes]; it has no accuracy")
    if dataset.labels.min() < 0 or dataset.labels.max() >= count:
        worst = int(dataset.labels.max() if dataset.labels.max() >= count else dataset.labels.min())
        raise InputError(
            f"label {worst} is not among the library's {count} classes (0..{count - 1})"
        )
    return dataset.labels
