"""What cannot be planned: one line that names layer, key or option, and the value."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.planning.tables import fixed, row, table
from tvm_q4.errors import EnvironmentMismatch, InputError
from tvm_q4.planning.workflow import plan


def refused(data: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        plan(data, **({"limits": {"size": 0.5}} | options))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"weight": 0.5}, "limit 'weight' is unknown; there are size, bops, latency, size_bytes"),
        ({"size": -0.1}, "limit 'size' is -0.1; it must be a fraction"),
        ({"size": float("nan")}, "limit 'size' is nan"),
        ({"size": True}, "limit 'size' is True"),
        ({"latency_ms": "fast"}, "limit 'latency_ms' is fast; it must be a number of ms"),
        ({"size_bytes": float("inf")}, "limit 'size_bytes' is inf"),
        (["size=0.5", "size=0.6"], "'size=0.5' and 'size=0.6' limit the same cost"),
        (["size=0.5", "size_bytes=6"], "limit the same cost"),
        (["size"], "limit 'size' is not NAME=VALUE"),
        (["=1"], "limit '=1' is not NAME=VALUE"),
        ([], "there is no limit"),
    ],
)
def test_limits(limits: Any, message: str) -> None:
    assert message in refused(table(), limits=limits)


@pytest.mark.parametrize(
    ("fix", "message"),
    [
        ({"conv": 8}, "layer 'conv' to fix is not in the table; did you mean 'conv"),
        ({"zzz": 8}, "layer 'zzz' to fix is not in the table; there are conv1, conv2, conv3"),
        ({"conv1": 16}, "layer 'conv1' is to be fixed at '16'; write 8, 4 or w4a8"),
        (["conv1=8", "conv1=4"], "layer 'conv1' is to be fixed at 8 and at 4"),
        (["conv1"], "fixed layer 'conv1' is not NAME=VALUE"),
    ],
)
def test_fixes(fix: Any, message: str) -> None:
    assert message in refused(table(), fix=fix)


def test_fixes_against_ties_and_fixed_rows() -> None:
    tied = table(tied=[["conv1", "conv2"]])
    text = refused(tied, fix={"conv1": 8, "conv2": 4})
    assert "layers 'conv1' and 'conv2' are tied" in text
    assert "layer 'fc' is fixed at 8; it cannot be held at 4" in refused(
        fixed(table(), "fc"), fix={"fc": 4}
    )
    assert plan(tied, limits={"size": 1}, fix={"conv1": 4})["bits"]["conv2"] == 4
    assert "are tied" in refused(fixed(tied, "conv1"), fix={"conv2": 4})


@pytest.mark.parametrize("choices", ["4,6", "", [2]])
def test_choices(choices: Any) -> None:
    assert "is unknown; write some of 4,8,w4a8" in refused(table(), choices=choices)


def test_no_choices() -> None:
    assert "there are no choices" in refused(table(), choices=[])


@pytest.mark.parametrize(("sweep", "points"), [("time", 9), ("size_bytes", 9), ("latency", 1)])
def test_sweeps(sweep: str, points: int) -> None:
    assert "sweep" in refused(table(), limits={}, sweep=sweep, points=points)


def test_a_limit_on_what_is_swept() -> None:
    assert "leave it out" in refused(table(), sweep="size", limits={"size_bytes": 9})


@pytest.mark.parametrize(
    ("key", "precision", "limits", "choices"),
    [
        ("sensitivity", "4", {"size": 0.5}, "4,8"),
        ("sensitivity", "8", {"size": 0.5}, "4,8"),
        ("latency_ms", "4", {"latency": 0.5}, "4,8"),
        ("latency_ms", "4", {"size": 0.5}, "4,8"),
        ("latency_ms", "w4a8", {"size": 0.5}, "4,8,w4a8"),
    ],
)
def test_a_missing_value(key: str, precision: str, limits: Any, choices: str) -> None:
    data = table()
    del row(data, "conv3")[key][precision]
    text = refused(data, limits=limits, choices=choices)
    assert f"layer table 1, layer 'conv3': {key} has no value at {precision}" in text


@pytest.mark.parametrize("key", ["params", "macs"])
def test_a_missing_count(key: str) -> None:
    data = table()
    del row(data, "conv3")[key]
    assert f"layer 'conv3': {key} is missing" in refused(data)


def test_a_negative_cost() -> None:
    data = table()
    row(data, "conv3")["latency_ms"]["4"] = -1
    assert "layer 'conv3': latency_ms at 4 is -1" in refused(data)


def test_a_tie_to_an_unknown_layer() -> None:
    assert "tied: layer 'conv9' is unknown" in refused(table(tied=[["conv1", "conv9"]]))


def test_a_fraction_of_latencies_that_are_not_there() -> None:
    data = table()
    for layer in data["layers"]:
        del layer["latency_ms"]["4"]
    text = refused(data, choices="8,w4a8", limits={"latency": 0.5})
    assert "a fraction of latency_ms needs every layer's value at 4" in text
    assert plan(data, choices="8,w4a8", limits={"latency_ms": 3})["status"] == "optimal"


@pytest.mark.parametrize("key", ["8-4", "4-8"])
def test_half_a_boundary(key: str) -> None:
    boundary = {"from": "conv1", "to": ["conv2"], "latency_ms": {"8-4": 0.1, "4-8": 0.1}}
    del boundary["latency_ms"][key]
    text = refused(table(boundaries=[boundary]))
    assert f"boundary of 'conv1': latency_ms has no value at {key}" in text


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(EnvironmentMismatch, match=r'pip install "tvm-q4\[plan\]"'):
        plan(table(), limits={"size": 0.5})
