"""HAWQ checkpoints on the command line: what they do not tell is given by options."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.cli.conftest import Tool
from tests.frontend import hawq_checkpoint as made
from tests.frontend.hawq_networks import ARCHITECTURE_OF
from tvm_q4.frontend.hawq.architecture import ARCHITECTURES

SIZE = ("--image-size", "40x33")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quantized checkpoint of a network that keys alone do not tell from its v1.5."""
    for net in (made.TINY_BOTTLENECK, made.TINY_BOTTLENECK_V1_5):
        monkeypatch.setitem(ARCHITECTURES, ARCHITECTURE_OF[net].name, ARCHITECTURE_OF[net])
    state = made.make_state(made.TINY_BOTTLENECK)
    return made.save_quantized(state, tmp_path / "quantized_checkpoint.pth.tar")


def test_compile_and_verify_with_the_same_options(
    tool: Tool, checkpoint: Path, tmp_path: Path
) -> None:
    library, arch = tmp_path / "x.so", ("--arch", "tiny-bottleneck-b")
    options = (*arch, "--hawq-config", "uniform4", "--hawq-rounding", "half_up")
    assert tool("compile", checkpoint, *options, *SIZE, "-o", library).code == 0
    done = tool("verify", library, checkpoint, *options, "--json")
    assert (done.code, done.json["bit_exact"]) == (0, True)
    done = tool("verify", library, checkpoint, *arch)
    assert done.code == 1, "another rounding is another model"
    assert "is another model" in done.err


def test_inspect_says_where_the_model_came_from(tool: Tool, checkpoint: Path) -> None:
    done = tool("inspect", checkpoint, "--arch", "tiny-bottleneck", *SIZE)
    assert done.code == 0
    (line,) = [text for text in done.out.splitlines() if text.startswith("from ")]
    assert line == (
        "from HAWQ checkpoint (HAWQ-V3, arch tiny-bottleneck, bit config uniform4, "
        "file quantized_checkpoint, rounding half_even)"
    )
    report = tool("inspect", checkpoint, "--arch", "tiny-bottleneck", *SIZE, "--json").json
    details = report["metadata"]["model"]["source_details"]
    assert (details["arch"], details["bit config"]) == ("tiny-bottleneck", "uniform4")


def test_what_is_missing_or_wrong_is_one_line(tool: Tool, checkpoint: Path, pt2: Path) -> None:
    line = tool("inspect", checkpoint, *SIZE).refused()
    assert "give --arch tiny-bottleneck (v1, " in line
    assert "or --arch tiny-bottleneck-b (v1.5, " in line
    line = tool("inspect", checkpoint, "--arch", "resnet").refused()
    assert "'resnet' is unknown; use resnet18" in line
    arch = ("--arch", "tiny-bottleneck")
    line = tool("compile", checkpoint, *arch, "--hawq-config", "uniform8", "-o", "x.so").refused()
    assert "which are 4 bits, not 8" in line
    assert not Path("x.so").exists()
    assert "is no HAWQ checkpoint" in tool("inspect", pt2, *arch).refused()
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    assert "is damaged" in tool("inspect", checkpoint, *arch).refused()
