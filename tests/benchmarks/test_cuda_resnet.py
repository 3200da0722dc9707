"""The GPU benchmark's pieces that need no GPU, and the whole of it with the CPU in its place."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import tvm

from tests.library import tiny, tiny_cuda
from tvm_q4.library import cuda_device

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = cuda_device.CudaDevice(tvm.cpu(0), 80, "Test GPU")
    monkeypatch.setattr(cuda_device, "open_device", lambda: device)


def bundle(folder: Path, wrong: bool = False) -> Path:
    """A bundle of one case, which may expect what the library does not compute."""
    from cuda_bundle import Case, digest, make_input, write_index

    folder.mkdir()
    layers = [tiny_cuda.metadata()["layers"][0] | {"predicted_us": 2.0}]
    families = [entry | {"layers": layers} for entry in tiny_cuda.metadata()["families"]]
    tiny_cuda.write_emulated(folder / "a.so", layers=layers, families=families)
    x = make_input(tiny.metadata())
    q = tiny.quantize(x)
    np.save(folder / "a.npy", tiny.expected(q) + wrong)
    tensors = {"input": digest(q), "double": digest(2 * q + np.int8(wrong)), "elsewhere": "0"}
    write_index(folder, "cuda", [Case("tiny", "w4a4", 2, "a.so", "a.npy", digest(x), tensors)])
    return folder


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("packed", [False, True])
def test_right_results_are_timed(tmp_path: Path, packed: bool, capsys) -> None:
    import cuda_bundle
    import cuda_resnet

    path = bundle(tmp_path / "bundle")
    if packed:
        cuda_bundle.pack(path, tmp_path / "bundle.tar.xz")
        path = tmp_path / "bundle.tar.xz"
    out = tmp_path / "out.json"
    arguments = [str(path), "--no-torch", "--repeats", "3", "--json", str(out)]
    assert cuda_resnet.main(arguments) == 0
    report = json.loads(out.read_text())
    (row,) = report["cases"]
    assert report["device"] == "Test GPU (sm_80)"
    assert row["exact"] and row["cuda_graph"] and row["tvm_q4"]["timer"] == "device events"
    text = capsys.readouterr().out
    assert "| tiny-w4a4-b2 | yes |" in text
    assert "| double |" in text and "| 2.0 |" in text


@pytest.mark.usefixtures("_gpu")
def test_wrong_results_are_not(tmp_path: Path, capsys) -> None:
    import cuda_resnet

    assert cuda_resnet.main([str(bundle(tmp_path / "bundle", wrong=True)), "--no-torch"]) == 1
    assert "| tiny-w4a4-b2 | NO, first double | - | - | - | - |" in capsys.readouterr().out


@pytest.mark.usefixtures("_gpu")
def test_a_peer_that_cannot_run_is_named(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import cuda_bundle
    import cuda_resnet

    case = cuda_bundle.Case("resnet18", "uniform8", 1, "", "", "")
    options = Namespace(minutes=8.0, repeats=1)
    late = cuda_resnet.run_peer(case, options, time.monotonic() - 1)
    assert late == {"skipped": "--minutes 8.0 were over"}


def test_ratio() -> None:
    import cuda_resnet

    ours = {"median_ms": 0.5, "p10_ms": 0.4, "p90_ms": 0.6, "images_per_second": 16000.0}
    row = {"case": "c", "exact": True, "tvm_q4": ours, "torch": {"median_ms": 1.25}}
    assert cuda_resnet.table_row(row) == "| c | yes | 0.500 (0.400..0.600) | 16000 | 1.250 | 2.50 |"
    row["torch"] = {"skipped": "no torch"}
    assert cuda_resnet.table_row(row).endswith("| 16000 | - | - |")


def test_the_input_is_the_same_everywhere() -> None:
    from cuda_bundle import digest, make_input

    x = make_input(tiny.metadata())
    assert digest(x) == "7a5c2bb47b68084015ad9402862764d2f8ca205f966f94a7b27a93c61320731c"
    assert x.min() < -2.4 and x.max() > 2.4


def test_arguments_of_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda_build
    import cuda_bundle

    built = []

    def build(options: Namespace, model: str, config: str, batch: int, folder: Path):
        built.append((model, config, batch, options.target))
        (folder / "a.so").write_bytes(b"code" * 1000)
        return cuda_bundle.Case(model, config, batch, "a.so", "a.npy", "0")

    monkeypatch.setattr(cuda_build, "build_case", build)
    out = tmp_path / "b.tar.xz"
    arguments = ["--models", "resnet18", "--batches", "1,8", "--configs", "uniform4"]
    assert cuda_build.main([*arguments, "-o", str(out)]) == 0
    assert built == [("resnet18", "uniform4", n, "cuda:sm_90") for n in (1, 8)]
    with cuda_bundle.opened(out) as folder:
        cases = cuda_bundle.read_index(folder)
        assert [case.name for case in cases] == ["resnet18-uniform4-b1", "resnet18-uniform4-b8"]
        assert (folder / "a.so").stat().st_size == 4000
