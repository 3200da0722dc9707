"""The accuracy table by method, on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="quantization needs tvm-q4[torch]")
pytest.importorskip("torchao")

from tests.quantize.prepared import Chain, images, network  # noqa: E402
from tvm_q4.quantize import save_program  # noqa: E402

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_rows_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import quantize_table

    model = network(Chain)
    x = images(20)
    with torch.no_grad():
        labels = model(x).argmax(1).numpy()
    save_program(torch.export.export(model, (x[:4],)), tmp_path / "net.pt2")
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=labels)
    data = str(tmp_path / "data.npz")
    arguments = [str(tmp_path / "net.pt2"), "--calibrate", data, "--data", data]
    arguments += ["--samples", "12", "--configs", "uniform8", "--methods", "mse"]
    assert quantize_table.main([*arguments, "--json", str(tmp_path / "rows.json")]) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["config"], row["method"]) == ("uniform8", "mse")
    assert row["n"] == 20 and row["correct"] >= 18
    assert "| uniform8 | mse |" in capsys.readouterr().out
