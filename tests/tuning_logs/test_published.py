"""Published times: what the shipped table holds, where it applies, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvm_q4.errors import InputError
from tvm_q4.tuning_logs.published import is_published, read_published
from tvm_q4.tuning_logs.records import best_records

HAWQ = "hawq-v3-t4"
LAYER: dict[str, Any] = {
    "network": "net", "op": "conv2d", "kernel": [3, 3], "stride": 1, "ci": 16, "co": 16, "size": 6,
    "us": {"layer": {"4": [3.0, 1.0, 2.0], "8": [5.0]}, "kernel": {"4": [0.5]}},
}  # fmt: skip
TABLE: dict[str, Any] = {
    "format": "tvm-q4/published-times", "version": 1, "name": "x", "device": "d", "arch": "sm_80",
    "batch": 2, "date": "2020", "citation": "c", "source": "s", "kinds": {},
    "use": ["layer", "kernel"], "layers": [LAYER],
}  # fmt: skip
GEOMETRY = ("conv2d", (3, 3), 1, 16, 16, 6)


def write(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(TABLE | changes))
    return path


def test_the_shipped_table_is_named_without_a_path() -> None:
    table = read_published(HAWQ)
    assert (table.file, table.arch, table.batch) == ("hawq_v3_t4.json", "sm_75", 8)
    assert table.device == "Tesla T4" and "2011.10680" in table.citation


def test_values_are_those_of_the_network_that_was_measured_if_it_was() -> None:
    table = read_published(HAWQ)
    geometry = ("conv2d", (3, 3), 1, 512, 512, 7)
    assert table.microseconds("resnet18", geometry, "8") == (373.98, "layer")
    assert table.microseconds("resnet50", geometry, "8") == (330.87, "layer")
    assert table.microseconds("else", geometry, "8") == (373.98, "layer")
    assert table.microseconds("resnet18", ("dense", (1, 1), 1, 512, 1000, 1), "4") is None
    stem = table.microseconds("resnet50", ("conv2d", (7, 7), 2, 3, 64, 224), "8")
    assert stem == (367.892, "kernel")


def test_every_published_value_is_there(data_dir: Callable[..., Path]) -> None:
    """Against the table that the facts were taken from."""
    facts = json.loads(data_dir("hawq-v3", "t4_layer_latency.json").read_text())
    table = json.loads(
        (Path(__file__).parents[2] / "tuning_logs/published/hawq_v3_t4.json").read_text()
    )
    by_name = {
        (layer["network"], name): (layer, i)
        for layer in table["layers"]
        for i, name in enumerate(layer.get("names", ()))
    }
    for network, entry in facts["network"].items():
        for fact in entry["layers"]:
            layer, i = by_name.pop((network, fact["name"]))
            numbers = tuple(map(int, re.findall(r"\d+", fact["shape"])))
            keys = ("ci", "co", "stride", "size")
            assert numbers == (*layer["kernel"], *(layer[key] for key in keys))
            for bits in ("4", "8"):
                assert layer["us"]["layer"][bits][i] == fact[f"ilp_int{bits}_us"]
                assert layer["us"]["kernel"][bits] == [fact[f"log_int{bits}_us"]]
    assert not by_name
    kernels = [us for layer in table["layers"] for us in layer["us"]["kernel"].values()]
    assert len(kernels) == sum(len(records) for records in facts["records"].values())


def test_the_median_of_the_first_kind_in_use_is_taken(tmp_path: Path) -> None:
    table = read_published(write(tmp_path / "t.json"))
    assert table.microseconds("net", GEOMETRY, "4") == (2.0, "layer")
    table = read_published(write(tmp_path / "t.json", use=["kernel", "layer"]))
    assert table.microseconds("net", GEOMETRY, "4") == (0.5, "kernel")
    assert table.microseconds("net", GEOMETRY, "8") is None, "kinds are not mixed within a layer"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "has version 2; this release reads 1"),
        ({"layers": [{"op": "conv2d"}]}, "damaged: lacks 'kernel'"),
        ({"layers": [LAYER | {"us": {}}]}, "has none of the kinds"),
        ({"layers": [LAYER | {"us": {"layer": {"4": [-1]}}}]}, "a time that is not positive"),
        ({"layers": [LAYER | {"us": {"layer": {"4": []}}}]}, "damaged"),
        ({"batch": "eight"}, "batch is 'eight'"),
        ({"layers": 3}, "damaged"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_published(write(tmp_path / "t.json", **changes))


def test_other_files_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"schema": 1}\n')
    assert not is_published(tmp_path / "log.jsonl") and not is_published(tmp_path / "none")
    (tmp_path / "bad.json").write_text('{"format": "tvm-q4/published-times",')
    with pytest.raises(InputError, match="is not JSON"):
        read_published(tmp_path / "bad.json")


def test_nothing_is_compiled_from_published_times(tmp_path: Path) -> None:
    for path in (HAWQ, write(tmp_path / "t.json")):
        with pytest.raises(InputError, match="published times, which no kernel can be compiled"):
            best_records([path], "sm_75")
