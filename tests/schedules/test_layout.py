"""Physical layouts."""

from __future__ import annotations

import pytest

from tvm_q4.schedules.layout import PLAIN, Layout, round_up, shape4


@pytest.mark.parametrize(
    ("value", "multiple", "expected"),
    [(0, 16, 0), (1, 16, 16), (16, 16, 16), (17, 16, 32), (5, 4, 8)],
)
def test_round_up(value: int, multiple: int, expected: int) -> None:
    assert round_up(value, multiple) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3,), (3, 1, 1, 1)), ((3, 5), (3, 5, 1, 1)), ((2, 3, 4, 5), (2, 3, 4, 5))],
)
def test_shape4(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert shape4(shape) == expected


def test_nhwc_has_a_halo_and_padded_channels() -> None:
    layout = Layout("NHWC", (1, 2, 3, 4), 32)
    assert layout.physical_shape((2, 20, 7, 9)) == (2, 7 + 1 + 3, 9 + 2 + 4, 32)
    assert layout.physical_shape((2, 20)) == (2, 1 + 4, 1 + 6, 32)
    assert layout.tag() == "NHWC32h1,2,3,4"
    assert layout.to_json() == {"kind": "NHWC", "halo": [1, 2, 3, 4], "channels": 32}


def test_plain_is_the_logical_order() -> None:
    assert PLAIN.physical_shape((2, 20)) == (2, 20)
    assert PLAIN.physical_shape((2, 20, 7, 9)) == (2, 20, 7, 9)
    assert (PLAIN.tag(), PLAIN.to_json()) == ("NCHW", {"kind": "NCHW"})


def test_halo_is_printed_only_where_there_is_one() -> None:
    assert Layout("NHWC", channels=16).tag() == "NHWC16"
