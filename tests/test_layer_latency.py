"""Layer tables: what is measured, what is predicted, and what both are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from tests.schedules.builders import U4, U8, call_of, module, requantized, weights
from tests.tuning_logs.test_records import BASE, write
from tvm_q4 import ops
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import InputError, TargetError
from tvm_q4.layer_latency import latency
from tvm_q4.relay_passes.lower_to_tir import LoweredCall
from tvm_q4.relay_passes.pipeline import to_fused, to_kernels
from tvm_q4.targets import parse_target
from tvm_q4.variants import variants

CPU = parse_target('{"kind": "llvm", "mcpu": "x86-64"}')


def network(bits: int, names: tuple[str, ...] = ("a", "b"), seed: int = 0) -> tvm.IRModule:
    """Convolutions of one width; `seed` changes weights and ratios only."""
    rng = np.random.default_rng(seed)
    values = U4 if bits == 4 else U8

    def emit(b, x):
        for name in names:
            w = weights(rng, bits, (16, 16, 3, 3))
            geometry = {"strides": [1, 1], "padding": [1] * 4, "weight_bits": bits}
            acc = b.emit(ops.conv2d(x, w, [0], name=name, **geometry))
            x = requantized(b, acc, rng, values, name=f"{name}.out")
        return x

    return module((2, 16, 6, 5), values, emit)


def call(mod: tvm.IRModule, target: Any = CPU) -> LoweredCall:
    """The one convolution of a network."""
    (variant,) = variants(target)
    return call_of(
        to_kernels(to_fused(mod), variant.target, variant.rules, lambda _: None), "conv2d"
    )


def record(mod: tvm.IRModule, us: float, **changes: Any) -> dict[str, Any]:
    """A record of the one convolution of a network."""
    one = call(mod)
    facts = {"signature": one.signature, "rule": one.choice.rule.name, "params": one.choice.params}
    return BASE | facts | {"times_us": [us * 3, us, us * 2]} | changes


def table(tmp_path: Path, *records: dict[str, Any], **options: Any) -> dict[str, Any]:
    log = write(tmp_path / "log.jsonl", *records)
    quantized = {8: network(8), 4: network(4)}
    return latency("net", target=CPU, log=[log], **({"quantized": quantized} | options))


def test_measured_and_predicted_layers_are_told_apart(tmp_path: Path) -> None:
    # "a" and "b" have the signature of a network of one layer, but for the reader of "a".
    found = table(tmp_path, record(network(8, ("b",)), 100.0))
    assert (found["format"], found["version"], found["batch"]) == ("tvm-q4/layer-table", 1, 2)
    a, b = found["layers"]
    assert [a["name"], b["name"]] == ["a", "b"]
    assert (a["params"], a["macs"]) == (16 * 16 * 9, 16 * 16 * 9 * 30)
    assert b["source"] == {"4": "predicted", "8": "measured"} and b["latency_ms"]["8"] == 0.1
    assert a["source"] == {"4": "predicted", "8": "predicted"}
    # The measured layer gives predictions their unit: "a" does what "b" does.
    assert a["latency_ms"]["8"] == pytest.approx(0.1, rel=0.3)
    assert all(ms > 0 for layer in (a, b) for ms in layer["latency_ms"].values())


def test_without_a_log_everything_is_predicted(caplog: pytest.LogCaptureFixture) -> None:
    found = latency("net", target=CPU, quantized={8: network(8), 4: network(4)})
    sources = {source for layer in found["layers"] for source in layer["source"].values()}
    assert sources == {"predicted"}
    assert "predicted times assume one core at 3000 MHz" in caplog.text


def test_gpus_are_predicted_in_microseconds(caplog: pytest.LogCaptureFixture) -> None:
    target = CudaTarget((80,))
    found = latency("net", target=target, quantized={8: network(8, ("a",)), 4: network(4, ("a",))})
    one = call(network(8, ("a",)), target)
    us = one.choice.rule.predict(one.layer, variants(target)[0].target, one.choice.params)
    assert found["layers"][0]["latency_ms"]["8"] == pytest.approx(us / 1e3)
    assert caplog.text == ""


def test_a_kernel_that_differs_in_shifts_only_stands_in(tmp_path: Path) -> None:
    one = network(8, ("b",))
    other = record(one, 50.0)
    assert "high0" in other["signature"]
    other["signature"] = other["signature"].replace("high0", "high7")
    b = table(tmp_path, other)["layers"][1]
    assert b["source"]["8"] == "measured, like kernel" and b["latency_ms"]["8"] == 0.05


def test_other_archs_and_unchecked_records_are_not_used(tmp_path: Path) -> None:
    one = network(8, ("b",))
    found = table(tmp_path, record(one, 1.0, arch="sm_80"), record(one, 1.0, checked=False))
    assert found["layers"][1]["source"]["8"] == "predicted"


def test_the_table_is_written(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    found = table(tmp_path, output=path)
    assert json.loads(path.read_text()) == found
    with pytest.raises(InputError, match="cannot be written"):
        table(tmp_path, output=tmp_path / "none" / "table.json")


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer 'b' is in one of the models"):
        table(tmp_path, quantized={8: network(8), 4: network(4, ("a",))})
    with pytest.raises(InputError, match="not of 2"):
        table(tmp_path, quantized={2: network(4)})
    with pytest.raises(TargetError, match="2 families; a layer table needs one arch"):
        latency("net", target="cuda:sm_75,sm_80", quantized={8: network(8), 4: network(4)})


@pytest.mark.slow
def test_float_models_are_quantized_here(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.frontend.graphs import export
    from tvm_q4.quantize import save_program

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)]
    head = [torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 12, 4)]
    path = tmp_path / "net.pt2"
    save_program(export(torch.nn.Sequential(*layers, *head).eval(), 2, 3, 7, 8), path, {})
    found = latency(path, target=CPU)
    assert len(found["layers"]) == 3 and found["network"] == "net"
    with pytest.raises(InputError, match="quantized already"):
        latency("zoo:resnet18@uniform8", target=CPU)
