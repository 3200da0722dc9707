"""Tasks of a small network, made once."""

from __future__ import annotations

import pytest

from tests.tune import fakes
from tvm_q4.tune.task import Task


@pytest.fixture(scope="session")
def tasks() -> list[Task]:
    return fakes.tasks()[1]
