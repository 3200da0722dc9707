"""Shared helpers: where the reference data is, and skipping with a reason where it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def find_data(*parts: str) -> Path | None:
    """Path under the data folder (TVM_Q4_DATA, else ../shared/data), or None if it is missing."""
    root = Path(os.environ.get("TVM_Q4_DATA", _SHARED))
    path = root.joinpath(*parts)
    return path if path.exists() else None


@pytest.fixture(scope="session")
def data_dir() -> Callable[..., Path]:
    """Function from path parts to a path under the data folder; skips the test if it is missing."""

    def locate(*parts: str) -> Path:
        path = find_data(*parts)
        if path is None:
            pytest.skip(f"data {'/'.join(parts)} is missing; set TVM_Q4_DATA to the data folder")
        return path

    return locate
