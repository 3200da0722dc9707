"""Physical and logical layouts."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tvm_q4.errors import LibraryError
from tvm_q4.layouts import physical_shape, to_logical, to_physical

LAYOUTS = [
    {"kind": "NCHW"},
    {"kind": "NHWC", "halo": [0, 0, 0, 0], "channels": 16},
    {"kind": "NHWC", "halo": [1, 0, 3, 2], "channels": 16},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 7, 2), (2, 16, 4, 4), (2, 7)])
def test_there_and_back(layout, shape):
    x = np.random.default_rng(0).integers(-128, 128, shape, dtype=np.int8)
    physical = to_physical(x, layout, fill=-3)
    assert physical.shape == physical_shape(shape, layout)
    logical = to_logical(physical, shape, layout)
    assert np.array_equal(logical, x) and logical.flags.c_contiguous and logical.dtype == np.int8


def test_every_element_has_its_place():
    x = np.random.default_rng(0).integers(0, 100, (2, 3, 4, 5), dtype=np.uint8)
    layout = {"kind": "NHWC", "halo": [1, 2, 0, 3], "channels": 8}
    physical = to_physical(x, layout, fill=200)
    assert physical.shape == (2, 5, 10, 8)
    for n, row, column, c in product(range(2), range(5), range(10), range(8)):
        inside = row >= 1 and 2 <= column < 7 and c < 3
        expected = x[n, c, row - 1, column - 2] if inside else 200
        assert physical[n, row, column, c] == expected


def test_wrong_physical_shape():
    with pytest.raises(LibraryError, match=r"\[2, 5, 10, 16\].*\[2, 5, 10, 8\]"):
        to_logical(
            np.zeros((2, 5, 10, 16)),
            (2, 3, 4, 5),
            {"kind": "NHWC", "halo": [1, 2, 0, 3], "channels": 8},
        )


def test_unknown_layout():
    with pytest.raises(LibraryError, match="'HWNC' is unknown"):
        to_logical(np.zeros(1), (1,), {"kind": "HWNC"})


@pytest.mark.parametrize(
    ("bits", "dtype", "lo", "hi"),
    [
        (4, "uint8", 0, 15),
        (4, "int8", -8, 7),
        (8, "uint8", 0, 255),
        (8, "int8", -128, 127),
        (16, "int16", -(2**15), 2**15 - 1),
        (32, "int32", -(2**31), 2**31 - 1),
    ],
)
def test_packed_words_round_trip(bits: int, dtype: str, lo: int, hi: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(lo, hi + 1, (2, 5, 3, 4)).astype(dtype)
    x.flat[0], x.flat[-1] = lo, hi
    layout = {"kind": "NHWC", "halo": [1, 0, 2, 1], "channels": 32, "bits": bits, "dtype": dtype}
    words = to_physical(x, layout, fill=lo)
    assert words.dtype == np.int32
    assert words.shape == (2, 6, 5, bits)
    np.testing.assert_array_equal(to_logical(words, x.shape, layout), x)


def test_lowest_channel_is_in_the_lowest_bits() -> None:
    x = np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1)
    layout = {"kind": "NHWC", "halo": [0, 0, 0, 0], "channels": 8, "bits": 4, "dtype": "uint8"}
    assert int(to_physical(x, layout).view(np.uint32).item()) == 0x76543210
