"""Which images of a data set calibrate: how many, which of them, and in batches of what size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvm_q4.data import Dataset
from tvm_q4.errors import InputError
from tvm_q4.quantize.float_model import FloatModel


def batch_size_of(source: FloatModel, wanted: int) -> int:
    """Return the batch size to use: the model's own where it takes no other.

    Raises
    ------
    InputError
        If `wanted` is below 1.
    """
    if wanted < 1:
        raise InputError(f"batch_size is {wanted}; it must be at least 1")
    return source.batch or wanted


def checked_count(
    count: int, images: Dataset, source: FloatModel, where: str | Path, option: str
) -> int:
    """Return how many images to use: whole batches only where the model has a fixed one.

    Parameters
    ----------
    count : int
        How many are asked for.
    images : Dataset
    source : FloatModel
    where : str or Path
        The data, for error messages.
    option : str
        What asks for them, likewise.

    Raises
    ------
    InputError
        If the data has too few, or the model's batch asks for more.
    """
    if count < 1:
        raise InputError(f"{option} is {count}; it must be at least 1")
    if images.count < count:
        msg = f"data '{where}' has {images.count} images, {option} is {count}"
        raise InputError(f"{msg}; give more images, or ask for fewer")
    if source.batch is None:
        return count
    if count < source.batch:
        msg = f"{option} is {count}, but the model takes batches of {source.batch} only"
        raise InputError(f"{msg}; use as many {option}, or export it with a dynamic batch")
    return count - count % source.batch


def spread(count: int, total: int) -> NDArray[np.int64]:
    """Return `count` indices spread evenly over `total` images, whose order may go by class."""
    return np.arange(count) * total // count


def in_batches(index: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut indices into parts of `size`; the last may be shorter."""
    return [index[start : start + size] for start in range(0, len(index), size)]
