"""Where results go: an array or a tensor of the user's, of their shape and dtype."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError


def store(result: NDArray, target: NDArray) -> None:
    """Copy a result into an array of the user's.

    Raises
    ------
    InputError
        If it has another shape or dtype, or is read-only.
    """
    check_out(str(target.dtype), target.shape, str(result.dtype), result.shape)
    if not target.flags.writeable:
        raise InputError("out is read-only; give a writable array")
    np.copyto(target, result)


def check_out(
    dtype: str, shape: tuple[int, ...], result_dtype: str, result_shape: tuple[int, ...]
) -> None:
    """Refuse an `out` that does not have the result's shape and dtype.

    Raises
    ------
    InputError
        With both.
    """
    if (dtype, shape) != (result_dtype, result_shape):
        msg = (
            f"out is {dtype} {list(shape)}, the result is {result_dtype} "
            f"{list(result_shape)}; give an array of that shape and dtype"
        )
        raise InputError(msg)
