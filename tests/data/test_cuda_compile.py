"""Real networks compiled for all GPU families at once: what the library holds, and what not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import tvm_q4
from tvm_q4.library.device_code import write_device_code
from tvm_q4.library.nvcc import find_tool

ARCHS = (75, 80, 89, 90)
TARGET = "cuda:sm_75,sm_80,sm_89,sm_90"
INT4 = {75: "mma.m8n8k32", 80: "mma.m16n8k64", 90: "widened"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_tool("nvcc") is None, reason="no nvcc here"),
]


def _check(path: Path, folder: Path) -> None:
    """Machine code of every arch and PTX of the newest; no source; no spilled register."""
    content = path.read_bytes()
    assert b"__global__" not in content
    written = write_device_code(path, folder)
    suffixes = [p.suffix for p in written]
    assert suffixes.count(".fatbin") == 3
    for arch in ARCHS:
        assert any(f"sm_{arch}" in p.name for p in written if p.suffix == ".cubin")
    (ptx,) = [p for p in written if p.suffix == ".ptx"]
    text = ptx.read_text()
    assert ".target sm_90" in text
    assert not any(kind in text for kind in (".s4.", ".u4.s4", ".s4.s4"))
    dump = find_tool("cuobjdump")
    if dump is None or shutil.which(str(dump.path)) is None:
        pytest.skip("no cuobjdump here")
    for cubin in (p for p in written if p.suffix == ".cubin"):
        usage = subprocess.run(
            [str(dump.path), "--dump-resource-usage", str(cubin)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "LOCAL:0" in usage
        assert usage.count("LOCAL:") == usage.count("LOCAL:0 ")


def test_nvidia_w4a4(data_dir: Path, tmp_path: Path) -> None:
    library = tvm_q4.compile(
        data_dir / "nvidia-resnet50-w4a4",
        target=TARGET,
        batch=8,
        output=tmp_path / "nvidia.so",
    )
    _check(library.path, tmp_path)
    for entry in library.metadata["families"]:
        ways = [e["executes_as"] for e in entry["layers"] if e["activation_bits"] == 4]
        assert len(ways) > 40
        assert all(INT4[entry["family"]] in way for way in ways)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        ("zoo:resnet50@uniform4", 8),
        ("zoo:resnet18@uniform8", 128),
        ("zoo:resnet34@w4a8", 1),
        ("zoo:resnet18@uniform4", 32),
    ],
)
def test_zoo(model: str, batch: int, tmp_path: Path) -> None:
    library = tvm_q4.compile(model, target=TARGET, batch=batch, output=tmp_path / "zoo.so")
    _check(library.path, tmp_path)
    first = library.metadata["layers"][0]
    assert first["rule"] == "cuda.stem_pool"
    assert all(layer["predicted_us"] > 0 for layer in library.metadata["layers"])
