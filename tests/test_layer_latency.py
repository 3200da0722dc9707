"""Layer tables: what is measured, what is predicted, and what both are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

import tvm_q4.quantize
from tests.schedules.builders import U4, U8, call_of, module, requantized, weights
from tests.tuning_logs.test_records import BASE, write
from tvm_q4 import ops
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import InputError, TargetError
from tvm_q4.latencies.logs import kernel_kind
from tvm_q4.layer_latency import latency
from tvm_q4.layer_table import from_dict as read_layer_table
from tvm_q4.quantize.config import BitConfig, LayerBits
from tvm_q4.relay_passes.lower_to_tir import LoweredCall
from tvm_q4.relay_passes.pipeline import to_fused, to_integer, to_kernels
from tvm_q4.targets import parse_target
from tvm_q4.variants import variants

CPU = parse_target('{"kind": "llvm", "mcpu": "x86-64"}')


def network(bits: int, names: tuple[str, ...] = ("a", "b"), seed: int = 0) -> tvm.IRModule:
    """Convolutions of one width; `seed` changes weights and ratios only."""
    return chain({name: (bits, bits) for name in names}, seed, last=bits)


def chain(
    bits: dict[str, tuple[int, int]],
    seed: int = 0,
    last: int = 8,
    pool: str = "",
    width: int = 16,
) -> tvm.IRModule:
    """Convolutions of one width by name, with weight and activation bits.

    `last` is the bits of the result; a max-pool follows the layer that `pool` names.
    """
    rng = np.random.default_rng(seed)
    values = [U4 if a == 4 else U8 for _, a in (*bits.values(), (last, last))]

    def emit(b, x):
        for (name, (w_bits, _)), out in zip(bits.items(), values[1:], strict=True):
            w = weights(rng, w_bits, (width, width, 3, 3))
            geometry = {"strides": [1, 1], "padding": [1] * 4, "weight_bits": w_bits}
            acc = b.emit(ops.conv2d(x, w, [0], name=name, **geometry))
            x = requantized(b, acc, rng, out, name=f"{name}.out")
            if name == pool:
                window = {"pool_size": [2, 2], "strides": [1, 1], "padding": [0, 0, 0, 0]}
                x = b.emit(ops.max_pool2d(x, name=f"{name}.pool", **window))
        return x

    return module((2, width, 6, 5), values[0], emit)


NAMES = ("stem", "a", "b", "c")


@pytest.fixture
def at_random(monkeypatch: pytest.MonkeyPatch) -> list[BitConfig]:
    """Puts a chain of `NAMES` with a fixed stem in place of quantized models; tells the configs."""
    asked: list[BitConfig] = []

    def made(_model: str, config: BitConfig, **_options: Any) -> tvm.IRModule:
        asked.append(config)
        bits = config.resolve(NAMES, NAMES[:1])
        pairs = {name: (pair.weight, pair.activation) for name, pair in bits.items()}
        return chain(pairs, pool="a", width=128)

    monkeypatch.setitem(vars(tvm_q4.quantize), "quantize_at_random", made)  # imports no torch
    return asked


def call(mod: tvm.IRModule, target: Any = CPU) -> LoweredCall:
    """The one convolution of a network."""
    (variant,) = variants(target)
    return call_of(
        to_kernels(to_fused(mod), variant.target, variant.rules, lambda _: None), "conv2d"
    )


def predicted_ms(mod: tvm.IRModule, target: Any) -> float:
    """What the rules predict for all kernels of a network for a GPU."""
    (variant,) = variants(target)
    calls = to_kernels(to_fused(mod), variant.target, variant.rules, lambda _: None).calls
    costs = (c.choice.rule.predict(c.layer, variant.target, c.choice.params) for c in calls)
    return sum(costs) / 1e3


def planned_ms(table: dict[str, Any], bits: dict[str, int]) -> float:
    """What a table tells for the bits of its free layers."""
    full = read_layer_table(table)
    rows = {row.name: row for row in full.layers}
    ends = [
        (boundary, bits.get(boundary.producer, 8), bits.get(boundary.consumers[0], 8))
        for boundary in full.boundaries
    ]
    return (
        (full.rest_ms or 0)
        + sum(row.latency_ms[str(bits.get(name, 8))] for name, row in rows.items())
        + sum(b.latency_ms[f"{own}-{other}"] for b, own, other in ends if own != other)
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
    assert found["obtained"] == [{"source": "predicted", "device": "sm_80"}]
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
    with pytest.raises(InputError, match="choice '2' is unknown"):
        table(tmp_path, choices="2,8")
    with pytest.raises(InputError, match="not of 2"):
        table(tmp_path, quantized={2: network(4)})
    with pytest.raises(TargetError, match="2 families; a layer table needs one arch"):
        latency("net", target="cuda:sm_75,sm_80", quantized={8: network(8), 4: network(4)})


def test_fixed_layers_boundaries_and_the_rest(at_random: list[BitConfig]) -> None:
    found = latency("net", target=CudaTarget((75,)), choices="4,8,w4a8")
    stem, *free = found["layers"]
    assert stem["fixed"] == 8 and set(stem["latency_ms"]) == {"8"}
    assert [set(row["latency_ms"]) for row in free] == [{"4", "8", "w4a8"}] * 3
    ends = [(b["from"], b["to"], set(b["latency_ms"])) for b in found["boundaries"]]
    both = {"8-4", "4-8"}
    assert ends == [("stem", ["a"], {"8-4"}), ("a", ["b"], both), ("b", ["c"], both)]
    assert found["rest_ms"] > 0 and found["rest_source"] == "predicted"
    assert found["tied"] == []
    assert len(at_random) == 5, "three uniform ones and two that alternate"


def test_a_plans_latency_is_that_of_the_compiled_network(at_random: list[BitConfig]) -> None:
    """One boundary at least must matter, or this would show nothing."""
    target = CudaTarget((75,))
    found = latency("net", target=target)
    plain = found | {"boundaries": []}
    errors = []
    for pattern in ((8, 8, 4), (8, 4, 8), (4, 8, 8), (4, 4, 8)):
        bits = dict(zip(NAMES[1:], pattern, strict=True))
        pairs = {name: (bits.get(name, 8),) * 2 for name in NAMES}
        exact = predicted_ms(chain(pairs, pool="a", width=128), target)
        assert planned_ms(found, bits) == pytest.approx(exact, rel=1e-12)
        errors.append(abs(planned_ms(plain, bits) / exact - 1))
    assert max(errors) > 1e-4


def test_differences_are_of_two_measured_or_of_two_predicted_times(
    at_random: list[BitConfig], tmp_path: Path
) -> None:
    def by_name(config: dict[str, int]) -> dict[str, LoweredCall]:
        pairs = {name: (config.get(name, 8),) * 2 for name in NAMES}
        (variant,) = variants(CPU)
        fused = to_fused(chain(pairs, pool="a", width=128))
        calls = to_kernels(fused, variant.target, variant.rules, lambda _: None).calls
        return {c.layer.name: c for c in calls}

    def entry(one: LoweredCall, us: float) -> dict[str, Any]:
        facts = {"signature": one.signature, "rule": one.choice.rule.name}
        return BASE | facts | {"params": one.choice.params, "times_us": [us], "threads": 2}

    uniform = by_name({})["b"]
    narrow = by_name({"c": 4})["b"]
    log = write(tmp_path / "log.jsonl", entry(uniform, 100.0), entry(narrow, 130.0))
    after_a, after_b = latency("net", target=CPU, log=[log])["boundaries"][1:]
    assert after_b["source"]["8-4"] == "measured"
    assert after_b["latency_ms"]["8-4"] == pytest.approx(0.03)
    assert after_a["source"]["8-4"].startswith("predicted"), "its pool is in no log"

    log = write(tmp_path / "log.jsonl", entry(uniform, 100.0))
    found = latency("net", target=CPU, log=[log])
    after_b = found["boundaries"][2]
    assert after_b["source"] == {"8-4": "predicted, scaled", "4-8": "predicted"}
    assert abs(after_b["latency_ms"]["8-4"]) < 0.05, "not 0.1 ms against a time of other units"
    (measured,) = (o for o in found["obtained"] if o["source"] == "measured")
    assert measured == {
        "source": "measured", "device": "test", "log": "log.jsonl", "threads": 2,
        "from": "2026-11-21", "to": "2026-11-21",
    }  # fmt: skip


def test_given_models_leave_boundaries_out() -> None:
    found = latency("net", target=CPU, quantized={8: network(8), 4: network(4)})
    assert "boundaries" not in found and "fixed" not in found["layers"][0]


def test_readers_of_one_tensor_are_tied() -> None:
    def emit(b, x):
        rng = np.random.default_rng(0)
        geometry = {"strides": [1, 1], "padding": [1] * 4, "weight_bits": 8}
        sides = []
        for name in ("left", "right"):
            w = weights(rng, 8, (16, 16, 3, 3))
            acc = b.emit(ops.conv2d(x, w, [0], name=name, **geometry))
            sides.append(requantized(b, acc, rng, U8, name=f"{name}.out"))
        return b.emit(ops.concat(sides, name="joined"))

    mod = module((1, 16, 4, 4), U8, emit)
    found = latency("net", target=CPU, quantized={8: mod, 4: mod})
    assert found["tied"] == [["left", "right"]]
    assert [row["fixed"] for row in found["layers"]] == [8, 8], "the model of 4 bits keeps them"


def test_published_times_rank_between_measured_and_predicted_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def shortcut(b, x):
        w = weights(np.random.default_rng(0), 8, (512, 256, 1, 1))
        geometry = {"strides": [2, 2], "padding": [0] * 4, "weight_bits": 8}
        acc = b.emit(ops.conv2d(x, w, [0], name="a", **geometry))
        return requantized(b, acc, np.random.default_rng(0), U8, name="a.out")

    mods = {batch: module((batch, 256, 14, 14), U8, shortcut) for batch in (1, 8)}

    def row(mod: tvm.IRModule, target: Any, *logs: Path) -> dict[str, Any]:
        quantized = {8: mod, 4: mod}
        found = latency("resnet18", target=target, log=["hawq-v3-t4", *logs], quantized=quantized)
        return found["layers"][0]

    t4 = CudaTarget((75,))
    assert row(mods[8], t4)["source"] == {"8": "published"}
    assert row(mods[8], t4)["latency_ms"] == {"8": pytest.approx(0.02897)}
    one = call(mods[8], t4)
    facts = {"signature": one.signature, "rule": one.choice.rule.name, "params": one.choice.params}
    log = write(tmp_path / "log.jsonl", BASE | facts | {"arch": "sm_75", "times_us": [9.0]})
    assert row(mods[8], t4, log)["latency_ms"] == {"8": 0.009}
    assert caplog.text == ""
    assert row(mods[1], t4)["source"] == {"8": "predicted"}
    assert "is of sm_75, batch 8; it is not used for sm_75, batch 1" in caplog.text
    assert row(mods[8], CudaTarget((80,)))["source"] == {"8": "predicted"}


def test_halos_of_residual_inputs_and_shifts_do_not_make_another_kind() -> None:
    text = (
        "conv2d w4 | %1=add(%0,x1) high0,2 [0,15] | u4:NHWC16h1,1,1,1 u8:NHWC16{} -> %1:u4:NHWC16"
    )
    assert kernel_kind(text.format("h1,1,1,1")) == kernel_kind(text.format(""))
    assert kernel_kind(text) == kernel_kind(text.replace("high0,2", "high3,3"))
    assert kernel_kind(text) != kernel_kind(text.replace("u4:NHWC16h1,1,1,1", "u4:NHWC16"))


@pytest.mark.slow
def test_a_plans_latency_is_that_of_a_residual_network(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.latencies.residual_network import FREE, TIED, save
    from tvm_q4.quantize import quantize_at_random

    path, target = save(tmp_path / "net.pt2"), CudaTarget((75,))
    found = latency(path, target=target)
    assert found["tied"] == [TIED]
    for pattern in ((4, 8, 8, 4, 8), (8, 4, 4, 8, 4)):
        bits = dict(zip(FREE, pattern, strict=True))
        layers = {name: LayerBits(b, b) for name, b in bits.items()}
        mod = quantize_at_random(path, BitConfig(LayerBits(8, 8), layers))
        exact = predicted_ms(to_integer(mod), target)
        assert planned_ms(found, bits) == pytest.approx(exact, rel=1e-12)


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
