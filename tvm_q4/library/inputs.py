"""What a library accepts as input: checks, any DLPack tensor as an array, cutting into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError


@dataclass(frozen=True)
class InputSpec:
    """The input of a library as its metadata states it.

    `shape` is [N, C, H, W] with the compiled batch; `integer` and `bounds` are the dtype and the
    inclusive range of the quantized input, None where the library takes float32 only.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    integer: str | None
    bounds: tuple[int, int] | None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> InputSpec:
        """Read ``metadata["input"]``."""
        entry = metadata["input"]
        quantized = entry["quantized"]
        bounds = (quantized["lo"], quantized["hi"]) if quantized else None
        integer = quantized["dtype"] if quantized else None
        return cls(entry["name"], tuple(entry["shape"]), entry["dtype"], integer, bounds)

    @property
    def batch(self) -> int:
        """Images a run of the compiled code."""
        return self.shape[0]

    @property
    def dtypes(self) -> list[str]:
        """Dtypes that are accepted."""
        return list(dict.fromkeys(d for d in (self.dtype, self.integer) if d))

    def __str__(self) -> str:
        dims = ", ".join(str(d) for d in self.shape[1:])
        return f"{' or '.join(self.dtypes)} [N, {dims}]"

    def check(self, x: NDArray) -> None:
        """Refuse an array that the library cannot run on.

        Raises
        ------
        InputError
            For a wrong shape or dtype, no images, NaN, or integers beyond the quantized range.
        """
        self._check_form(x.shape, str(x.dtype))
        if x.dtype == np.float32:
            self._check_nan(x)
        elif self.bounds is not None:
            self._check_bounds(x, *self.bounds)

    def check_device(self, shape: Sequence[int], dtype: str) -> None:
        """Refuse a tensor on a device that the library cannot run on.

        Its values are not looked at, which would need them on the host; integers beyond the
        quantized range give wrong results.

        Raises
        ------
        InputError
            For a wrong shape or dtype, or a number of images that is no multiple of the batch.
        """
        self._check_form(shape, dtype)
        if shape[0] % self.batch:
            msg = (
                f"input {self.name!r} on the device holds {shape[0]} images, which is no multiple "
                f"of the compiled batch {self.batch}; pad it, or give a NumPy array"
            )
            raise InputError(msg)

    def _check_form(self, shape: Sequence[int], dtype: str) -> None:
        found = f"{dtype} [{', '.join(str(d) for d in shape)}]"
        if tuple(shape[1:]) != self.shape[1:]:
            raise InputError(f"input {self.name!r} has shape {found}, expected {self}; reshape it")
        if dtype not in self.dtypes:
            raise InputError(f"input {self.name!r} has dtype {found}, expected {self}; convert it")
        if shape[0] == 0:
            raise InputError(f"input {self.name!r} holds no images: it is {found}, expected {self}")

    def _check_nan(self, x: NDArray) -> None:
        # One pass without a temporary array: a sum is NaN if an element is, or if infinities meet.
        with np.errstate(invalid="ignore", over="ignore"):
            suspicious = np.isnan(np.sum(x, dtype=np.float32))
        if suspicious and np.isnan(x).any():
            index = np.argwhere(np.isnan(x))[0].tolist()
            raise InputError(
                f"input {self.name!r} is NaN at index {index}; a number is needed there"
            )

    def _check_bounds(self, x: NDArray, lo: int, hi: int) -> None:
        low, high = int(x.min()), int(x.max())
        if low < lo or high > hi:
            value = low if low < lo else high
            index = np.argwhere(x == value)[0].tolist()
            msg = (
                f"input {self.name!r} is {value} at index {index}, beyond the quantized input's "
                f"range {lo}..{hi}; clamp it or give float32"
            )
            raise InputError(msg)


def as_array(x: Any, name: str) -> NDArray:
    """A NumPy array of `x`, sharing memory where DLPack allows it.

    Raises
    ------
    InputError
        If `x` is neither an array nor a DLPack tensor, or lies on a device that is not the CPU.
    """
    if isinstance(x, np.ndarray):
        return x
    if not hasattr(x, "__dlpack__"):
        msg = f"input {name!r} is of type {type(x).__name__}; give a NumPy array or a DLPack tensor"
        raise InputError(msg)
    _check_cpu(x, name)
    if getattr(x, "requires_grad", False):
        x = x.detach()
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        msg = f"input {name!r} cannot be read through DLPack ({error}); give a NumPy array"
        raise InputError(msg) from None


def _check_cpu(x: Any, name: str) -> None:
    kind, _ = x.__dlpack_device__()
    if int(kind) != 1:  # kDLCPU
        device = getattr(x, "device", kind)
        msg = f"input {name!r} is on {device}; this library runs on cpu, move it there"
        raise InputError(msg)


def batches(x: NDArray, size: int) -> Iterator[tuple[NDArray, int]]:
    """Pieces of `size` images and how many of each are real; the last piece repeats its last image.

    An image is repeated because zeros may lie outside the quantized input's range.
    """
    for start in range(0, x.shape[0], size):
        piece = x[start : start + size]
        count = piece.shape[0]
        if count < size:
            piece = np.concatenate([piece, np.repeat(piece[-1:], size - count, axis=0)])
        yield piece, count
