"""The hand-made library, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.library import tiny
from tvm_q4.library import Library, load


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.so")


@pytest.fixture(scope="session")
def tiny_library(tiny_path: Path) -> Library:
    return load(tiny_path)
