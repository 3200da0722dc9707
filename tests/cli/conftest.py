"""Models and libraries for the command line's tests: a small quantized network, made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tvm_q4.cli import main


@dataclass
class Outcome:
    """What one run of the command line did, C++ output included."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object on standard output."""
        return json.loads(self.out)

    def refused(self) -> str:
        """The line of a refusal: exit 2, nothing on standard output, one line on standard error."""
        assert (self.code, self.out) == (2, ""), self
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line


Tool = Callable[..., Outcome]


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str]) -> Tool:
    """Runs ``tvm-q4`` in this process; captures what C++ prints too."""

    def run(*args: object) -> Outcome:
        capfd.readouterr()
        code = main([str(a) for a in args])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def pt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``.pt2`` of a small quantized network for 8x9 images, with a transform and class names."""
    torch = pytest.importorskip("torch")
    from tests.cli.networks import Network
    from tests.frontend.graphs import export
    from tvm_q4.quantize import save_program

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "small.pt2"
    facts = {"name": "small", "transform": "cifar10", "classes": ["a", "b", "c", "d", "e"]}
    save_program(export(Network(), 1, 3, 8, 9), path, facts)
    return path


@pytest.fixture(scope="session")
def library(pt2: Path) -> Path:
    """The network compiled for this CPU."""
    import tvm_q4

    return tvm_q4.compile(pt2, output=pt2.with_suffix(".so")).path
