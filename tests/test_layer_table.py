"""Layer tables: what is read comes back, what is wrong is named, halves join."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvm_q4.errors import InputError
from tvm_q4.layer_table import FORMAT, VERSION, LayerTable, from_dict, join, read_table

FULL: dict[str, Any] = {
    "format": FORMAT,
    "version": VERSION,
    "network": "net",
    "batch": 8,
    "target": "llvm",
    "note": "kept",
    "layers": [
        {
            "name": "stem",
            "params": 27,
            "macs": 270,
            "sensitivity": {"8": 0.1},
            "latency_ms": {"8": 0.5},
            "fixed": 8,
        },
        {
            "name": "a",
            "params": 9,
            "macs": 90,
            "sensitivity": {"4": -0.2, "8": 0.1, "w4a8": 0.15},
            "latency_ms": {"4": 0.2, "8": 0.3},
            "source": {"4": "measured", "8": "predicted"},
            "shape": [1, 2],
        },
    ],
    "tied": [["stem", "a"]],
    "boundaries": [{"from": "stem", "to": ["a"], "latency_ms": {"8-4": -0.01, "4-8": 0.02}}],
    "rest_ms": 0.25,
}

Change = Callable[[dict[str, Any]], None]


def changed(change: Change) -> dict[str, Any]:
    data = copy.deepcopy(FULL)
    change(data)
    return data


def test_what_is_read_comes_back_with_keys_that_are_not_known() -> None:
    table = from_dict(FULL)
    assert table.to_dict() == FULL
    assert table.layers[1].extra == {"shape": [1, 2]} and table.extra == {"note": "kept"}


def test_written_tables_are_read(tmp_path: Path) -> None:
    from_dict(FULL).write(tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == from_dict(FULL)
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        from_dict(FULL).write(tmp_path / "missing" / "table.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="x"), '"format": "tvm-q4/layer-table"'),
        (lambda d: d.update(version=2), "version 2; this release reads 1"),
        (lambda d: d.update(layers=[]), "'layers' is empty"),
        (lambda d: d.update(layers={}), "'layers' is {}"),
        (lambda d: d["layers"].append({"params": 1}), "with a 'name'"),
        (lambda d: d["layers"].append({"name": "a"}), "layer 'a' is there 2 times"),
        (lambda d: d["layers"][1].update(params=-9), "layer 'a': params is -9; "),
        (lambda d: d["layers"][1].update(macs="many"), "layer 'a': macs is 'many'; "),
        (lambda d: d["layers"][1].update(macs=True), "layer 'a': macs is True; "),
        (lambda d: d["layers"][1].update(fixed=4), "fixed is 4"),
        (lambda d: d["layers"][1]["latency_ms"].update({"4": -0.1}), "latency_ms at 4 is -0.1; "),
        (lambda d: d["layers"][1]["latency_ms"].update({"4": None}), "latency_ms at 4 is None; "),
        (lambda d: d["layers"][1]["latency_ms"].update({"4": float("inf")}), "at 4 is inf; "),
        (lambda d: d["layers"][1]["sensitivity"].update({"4": float("nan")}), "at 4 is nan; "),
        (lambda d: d["layers"][1]["sensitivity"].update({"4": 10**400}), "sensitivity at 4 is 1"),
        (lambda d: d["layers"][1].update(latency_ms=3), "latency_ms is 3"),
        (lambda d: d.update(tied=[["a", "b"]]), "tied: layer 'b' is unknown"),
        (lambda d: d.update(tied=["a"]), "tied: 'a' must be a list"),
        (lambda d: d["boundaries"][0].update({"from": "x"}), "boundary of 'x': layer 'x' is unk"),
        (lambda d: d["boundaries"][0].update(to=[["a"]]), "is unknown"),
        (lambda d: d["boundaries"][0].update(to=[]), "must be an object with 'from', 'to'"),
        (lambda d: d.update(rest_ms=-1), "rest_ms is -1"),
        (lambda d: d.update(batch="8"), "batch is '8'"),
    ],
)
def test_what_is_wrong_is_named(change: Change, message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_dict(changed(change), "t.json")
    text = str(caught.value)
    assert text.startswith("t.json") and message in text and "\n" not in text


@pytest.mark.parametrize("text", ["", "[", "[]", "\xff", "[" * 100_000])
def test_files_that_are_no_tables(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"t\.json"):
        read_table(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_table(tmp_path / "t.json")


def half(*keys: str, **head: Any) -> LayerTable:
    """The table with only some keys in its rows, and none at the top but `head`."""
    rows = [{k: v for k, v in r.items() if k in ("name", *keys)} for r in FULL["layers"]]
    return from_dict({"format": FORMAT, "version": VERSION, "layers": rows, **head})


def test_halves_join_to_the_whole() -> None:
    a = half("params", "macs", "sensitivity", "shape", network="net", note="kept", batch=64)
    rest = {k: v for k, v in FULL.items() if k not in ("layers", "network", "note")}
    b = half("latency_ms", "macs", "source", "fixed", **rest)
    assert join([a, b]).to_dict() == FULL
    assert join([b, a]).to_dict() == FULL
    assert join([a, b, a]) == join([a, b])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["layers"].pop(0), "layer 'stem' is in one of the tables only"),
        (lambda d: d["layers"][1].update(params=10), "layer 'a': params is 10 and 9"),
        (lambda d: d["layers"][1].update(macs=91), "layer 'a': macs is 91 and 90"),
        (lambda d: d["layers"][1]["latency_ms"].update({"4": 1}), "latency_ms at 4 is 1 and 0.2"),
        (lambda d: d["layers"][1]["sensitivity"].update({"w4a8": 1}), "at w4a8 is 1 and 0.15"),
        (lambda d: d["boundaries"][0]["latency_ms"].update({"8-4": 1}), "at 8-4 is 1 and -0.01"),
        (lambda d: d.update(batch=1), "batch of the latencies is 1 and 8"),
        (lambda d: d.update(target="cuda"), "target of the latencies is 'cuda' and 'llvm'"),
        (lambda d: d.update(rest_ms=1), "rest_ms is 1 and 0.25"),
    ],
)
def test_contradictions_are_named(change: Change, message: str) -> None:
    data = changed(change)
    if len(data["layers"]) == 1:
        del data["tied"], data["boundaries"]
    with pytest.raises(InputError) as caught:
        join([from_dict(FULL), from_dict(data)], ["a.json", "b.json"])
    assert message in str(caught.value) and str(caught.value).startswith("b.json and a.json")


def test_networks_of_other_names_join_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    # Latencies are measured with random weights, sensitivities with those of a trained model.
    other = from_dict(changed(lambda d: d.update(network="trained")))
    assert join([from_dict(FULL), other]).network == "net"
    assert "trained" in caplog.text


def test_no_table_at_all() -> None:
    with pytest.raises(InputError, match="no layer table"):
        join([])


def test_the_base_install_reads_tables() -> None:
    import subprocess
    import sys

    code = (
        "import sys, tvm_q4.layer_table, tvm_q4.planning.workflow;"
        "print(json.dumps([n for n in ('torch', 'tvm', 'scipy', 'onnx') if n in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import json;{code}"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
