"""Reading tuning logs, and what compile does with them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4.compiler import Options, compile_module
from tvm_q4.errors import CheckFailed, InputError
from tvm_q4.meta import with_meta
from tvm_q4.schedules.cpu import RULES
from tvm_q4.targets import parse_target
from tvm_q4.tuning_logs.records import best_records, read_log

TARGET = parse_target('{"kind": "llvm", "mcpu": "x86-64"}')
BASE = {
    "schema": 1, "tvm": "0.27", "tvm_q4": "0.1", "device": "test", "arch": "x86-64",
    "signature": "s", "rule": "r", "params": {"a": 1}, "times_us": [3.0, 1.0, 2.0],
    "checked": True, "date": "2026-11-21",
}  # fmt: skip


def write(path: Path, *entries: Any) -> Path:
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_fastest_checked_record_of_the_arch_is_best(tmp_path: Path) -> None:
    slow = BASE | {"params": {"a": 2}, "times_us": [5.0]}
    unchecked = BASE | {"params": {"a": 3}, "times_us": [0.1], "checked": False}
    foreign = BASE | {"params": {"a": 4}, "times_us": [0.1], "arch": "sm_75"}
    log = write(tmp_path / "a.jsonl", slow, BASE, unchecked)
    other = write(tmp_path / "b.jsonl", foreign)
    best = best_records([log, other], "x86-64")
    assert set(best) == {"s"}
    assert best["s"].params == {"a": 1} and best["s"].time_us == 2.0


@pytest.mark.parametrize(
    "line",
    [
        "not json", "[1]", "{}", "null", '"schema"', "[" * 100_000, "1" * 5000, "\x00",
        BASE | {"times_us": []}, BASE | {"times_us": [0.0]}, BASE | {"times_us": [True]},
        BASE | {"times_us": [float("nan")]}, BASE | {"times_us": [1.0, float("inf")]},
        BASE | {"times_us": "3"}, BASE | {"start_us": [-1.0]}, BASE | {"params": 3},
        BASE | {"checked": 1}, BASE | {"schema": 2}, BASE | {"schema": True},
        BASE | {"schema": "1"}, {k: v for k, v in BASE.items() if k != "date"},
    ],
)  # fmt: skip
def test_broken_lines_are_reported_with_their_number(
    line: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = write(tmp_path / "a.jsonl", BASE, line, BASE)
    with caplog.at_level(logging.WARNING):
        assert len(list(read_log(log))) == 2
    assert "a.jsonl:2" in caplog.text


def test_bytes_that_are_no_text_are_one_broken_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = write(tmp_path / "a.jsonl", BASE)
    log.write_bytes(b"\xff\xfe\n" + log.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert len(list(read_log(log))) == 1
    assert "a.jsonl:1: skipped, not JSON" in caplog.text


def test_a_file_of_another_kind_is_reported_shortly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "a.txt"
    log.write_text("a line of text\n" * 1000)
    with caplog.at_level(logging.WARNING):
        assert list(read_log(log)) == []
    assert len(caplog.records) == 11 and "990 more lines" in caplog.text


def best_of_lines(path: Path, *entries: dict[str, Any]) -> dict[str, Any]:
    return best_records([write(path / "a.jsonl", *entries)], "x86-64")["s"].params


def test_the_fastest_checked_record_is_the_best(tmp_path: Path) -> None:
    fast = BASE | {"params": {"a": 2}, "times_us": [0.5]}
    unchecked = fast | {"times_us": [0.2], "checked": False}
    assert best_of_lines(tmp_path, BASE, fast, unchecked) == {"a": 2}


def test_a_single_measurement_has_to_be_clearly_better_than_what_was_measured_again(
    tmp_path: Path,
) -> None:
    sure = BASE | {"params": {"a": 3}, "times_us": [1.0], "again": True}
    lucky = BASE | {"params": {"a": 2}, "times_us": [0.99]}
    better = BASE | {"params": {"a": 4}, "times_us": [0.97]}
    assert best_of_lines(tmp_path, BASE, lucky, sure) == {"a": 3}
    assert best_of_lines(tmp_path, BASE, lucky, sure, better) == {"a": 4}


def test_what_was_measured_beside_the_start_is_compared_by_the_ratio(tmp_path: Path) -> None:
    then = BASE | {"params": {"a": 2}, "times_us": [1.2], "start_us": [2.0]}
    now = BASE | {"params": {"a": 3}, "times_us": [1.0], "start_us": [1.4]}  # a faster moment
    assert best_of_lines(tmp_path, then, now) == {"a": 2}
    assert best_of_lines(tmp_path, now, then) == {"a": 2}


def test_neither_lucky_nor_disturbed_samples_decide(tmp_path: Path) -> None:
    steady = BASE | {"params": {"a": 2}, "times_us": [2.0, 2.0, 2.1, 2.0, 9.0, 9.0, 9.0, 9.0]}
    lucky = BASE | {"params": {"a": 3}, "times_us": [0.5, 2.3, 2.3, 2.3, 2.3, 2.3, 2.3, 2.3]}
    assert best_of_lines(tmp_path, lucky, steady) == {"a": 2}


def test_another_schema_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="schema 2"):
        list(read_log(write(tmp_path / "a.jsonl", BASE | {"schema": 2})))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_log(tmp_path / "missing.jsonl"))


def small() -> tvm.IRModule:
    rng = np.random.default_rng(0)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 16, 6, 6), "uint8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = rng.integers(-8, 8, (16, 16, 3, 3))
            a = builder.emit(ops.conv2d(x, w, [0] * 16, name="c", strides=[1, 1], padding=[1] * 4))
            args = {"name": "c.out", "lo": 0, "hi": 255, "dtype": "uint8"}
            out = builder.emit_output(builder.emit(ops.requantize(a, [2**30], [36], **args)))
        builder.emit_func_output(out)
    return with_meta(builder.get(), input_range=[0, 255])


def test_compile_takes_the_record_and_says_so(tmp_path: Path) -> None:
    (layer,) = compile_module(small(), TARGET).metadata["layers"]
    assert layer["source"] == "predicted"
    other = {"form": "generic", "tile_h": 1, "tile_w": 2, "blocks": 1}
    assert layer["rule_params"] != other and layer["rule"] == RULES[0].name
    entry = BASE | {k: layer[k] for k in ("signature", "rule")} | {"params": other}
    log = write(tmp_path / "log.jsonl", entry)
    options = Options(tuning_log=(str(log),), strict_log=True)
    (tuned,) = compile_module(small(), TARGET, options).metadata["layers"]
    assert tuned["source"] == "measured" and tuned["rule_params"] == other
    assert tuned["signature"] == layer["signature"]


def test_strict_log_names_the_first_layer_without_a_record(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", BASE)
    with pytest.raises(CheckFailed, match=r"1 of 3 layers have no checked record for x86-64.*'c'"):
        compile_module(small(), TARGET, Options(tuning_log=(str(log),), strict_log=True))
