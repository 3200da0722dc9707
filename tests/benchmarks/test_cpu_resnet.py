from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import pytest

from tvm_q4.errors import UnsupportedError

pytest.importorskip("onnx", reason="the benchmark's peer needs onnx: install tvm-q4[bench]")
ort = pytest.importorskip("onnxruntime", reason="the peer is onnxruntime: install tvm-q4[bench]")
torch = pytest.importorskip("torch", reason="the benchmark's networks need tvm-q4[torch]")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def peer(tmp_path: Path):
    """A small network, its ONNX files for 2 images of 96x96, and an image batch."""
    import ort_peer

    network = ort_peer.float_network("resnet18", image_size=96)
    paths = ort_peer.write_models(network, 2, tmp_path, image_size=96)
    x = np.random.default_rng(3).standard_normal((2, 3, 96, 96)).astype(np.float32)
    return network, paths, x


def test_onnx_models_compute_the_torch_network_in_integers(peer, tmp_path: Path) -> None:
    import ort_peer

    network, (float_path, int8_path), x = peer
    expected = network(torch.from_numpy(x)).detach().numpy()
    optimized = tmp_path / "optimized.onnx"

    float_logits = ort_peer.bound_call(ort_peer.open_session(float_path, 1), x)()
    int8_session = ort_peer.open_session(int8_path, 1, optimized)
    int8_logits = ort_peer.bound_call(int8_session, x)()

    np.testing.assert_allclose(float_logits, expected, rtol=1e-3, atol=1e-4)
    assert np.corrcoef(int8_logits.ravel(), expected.ravel())[0, 1] > 0.95
    ort_peer.check_integer_kernels(ort_peer.executed_operators(optimized), layers=21)


@pytest.mark.parametrize(
    "operators",
    [{"QLinearConv": 20}, {"QLinearConv": 20, "QGemm": 1, "Add": 1}, {"Conv": 20, "Gemm": 1}],
)
def test_float_fallback_of_the_peer_is_an_error(operators: dict[str, int]) -> None:
    import ort_peer

    with pytest.raises(RuntimeError, match="in float"):
        ort_peer.check_integer_kernels(collections.Counter(operators), layers=21)


def test_exporter_names_what_it_cannot_write() -> None:
    from torch_to_onnx import torch_to_onnx

    with pytest.raises(UnsupportedError, match=r"node '_0'.*Sigmoid"):
        torch_to_onnx(torch.nn.Sequential(torch.nn.Sigmoid()), (1, 3, 4, 4))


def test_functions_run_in_turn_and_ratios_are_per_round() -> None:
    import paired_timing

    calls: list[str] = []
    rounds = paired_timing.time_in_turn(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, seconds=0.0
    )
    blocks = [
        name
        for name, previous in zip(calls[4:], ["", *calls[4:]], strict=False)
        if name != previous
    ]

    assert blocks == ["a", "b", "a", "b"]
    assert [len(rounds[name]) for name in "ab"] == [3, 3]
    ours = [paired_timing.Round(wall_ms=m, cpu_ms=1.0) for m in (2.0, 6.0, 30.0)]
    other = [paired_timing.Round(wall_ms=m, cpu_ms=2.0) for m in (1.0, 2.0, 20.0)]
    assert paired_timing.ratio(ours, other) == paired_timing.Ratio(2.0, 1.5, 3.0)
    assert paired_timing.ratio(ours, other, "cpu_ms") == paired_timing.Ratio(0.5, 0.5, 0.5)


def test_benchmark_prints_a_row_and_writes_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cpu_resnet

    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    report = tmp_path / "report.json"
    words = "--models resnet20-cifar --configs uniform4 --batches 2 --rounds 2 --seconds 0"
    cpu_resnet.main([*words.split(), "--image-size", "32", "--json", str(report)])

    assert "| resnet20-cifar | 2 | uniform4 |" in capsys.readouterr().out
    (case,) = json.loads(report.read_text())["cases"]
    assert {name: len(r) for name, r in case["rounds"].items()} == {
        "uniform4": 2,
        "onnxruntime int8": 2,
        "onnxruntime fp32": 2,
    }
    assert case["ratios"]["uniform4 / onnxruntime int8"]["median"] > 0
