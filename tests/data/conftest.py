"""Fixtures of the tests with models and data of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from numpy.typing import NDArray

from tests.data.nvidia import read_reference


@pytest.fixture(scope="module")
def folder(data_dir: Callable[..., Path]) -> Path:
    """NVIDIA's ResNet-50."""
    return data_dir("nvidia-resnet50-w4a4")


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, NDArray]:
    """Its recorded tensors."""
    return read_reference(folder)
