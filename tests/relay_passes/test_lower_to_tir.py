"""LowerToTIR: kernels are shared by signature, weights packed, both entry points agree."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.modules import module
from tests.schedules.builders import check_network, cpu, lower
from tvm_q4 import ops
from tvm_q4.errors import UnsupportedError
from tvm_q4.meta import with_meta
from tvm_q4.quant import INT32_MAX, INT32_MIN
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes._rewrite import dataflow_bindings, op_name
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.relay_passes.lower_to_tir import has_quantized_input, input_range

RNG = np.random.default_rng(8)


def _conv(b, x, name, out=16, bits=8, kernel=3):
    top = 1 << (bits - 1)
    w = RNG.integers(-top, top, (out, int(x.ty.shape[1]), kernel, kernel))
    geometry = {"strides": [1, 1], "padding": [kernel // 2] * 4, "zero_point": 0}
    acc = b.emit(
        ops.conv2d(x, w, RNG.integers(-99, 99, out), name=name, weight_bits=bits, **geometry)
    )
    m = RNG.integers(2**30, 2**31 - 1, out)
    how = {"name": f"{name}.out", "lo": 0, "hi": 255, "dtype": "uint8"}
    return b.emit(ops.requantize(acc, m, [40], **how))


def _network(b, x, dequantize=True):
    q = b.emit(ops.quantize(x, 0.02, 3, name="input", qmin=-127, qmax=127, dtype="int8"))
    y = _conv(b, q, "stem")
    for i in range(3):
        y = _conv(b, y, f"layer{i}")
    y = _conv(b, y, "narrow", 16, 4)
    pooled = b.emit(
        ops.avg_pool2d(y, name="pool", pool_size=[6, 5], strides=[1, 1], padding=[0] * 4)
    )
    flat = b.emit(relax.op.reshape(pooled, (2, 16)))
    z = b.emit(ops.requantize(flat, [1], [5], name="z", lo=0, hi=255, dtype="uint8"))
    acc = b.emit(
        ops.dense(z, RNG.integers(-128, 128, (10, 16)), RNG.integers(-9, 9, 10), name="fc")
    )
    if not dequantize:
        return acc
    how = {"name": "logits", "qmin": INT32_MIN, "qmax": INT32_MAX}
    return b.emit(ops.dequantize(acc, RNG.uniform(0, 1, 10), 0, **how))


SHAPE = (2, 3, 6, 5)


@pytest.fixture(scope="module")
def network() -> tvm.IRModule:
    return module(SHAPE, "float32", _network)


def test_layers_of_one_signature_share_a_kernel(network: tvm.IRModule) -> None:
    lowered = lower(network, cpu("x86-64"))
    kernels = {c.layer.name: c.kernel for c in lowered.calls}
    assert kernels["layer0"] == kernels["layer1"] == kernels["layer2"]
    assert len({kernels["stem"], kernels["layer0"], kernels["narrow"]}) == 3
    functions = [g.name_hint for g in lowered.mod.get_global_vars()]
    assert sorted(functions) == sorted(
        {*kernels.values(), "main", "main_quantized"} | _imports(lowered.mod)
    )


def _imports(mod: tvm.IRModule) -> set[str]:
    return {g.name_hint for g in mod.get_global_vars() if g.name_hint.startswith("q4_gather")}


def test_four_bit_weights_take_half_a_byte(network: tvm.IRModule) -> None:
    weights = lower(network, cpu("cascadelake")).weight_bytes
    assert weights == {
        "stem": 16 * 9 * 4,  # three channels kept as four
        "layer0": 16 * 9 * 16, "layer1": 16 * 9 * 16, "layer2": 16 * 9 * 16,
        "narrow": 16 * 9 * 16 // 2, "fc": 16 * 16,
    }  # fmt: skip


def test_calls_are_listed_once_in_order(network: tvm.IRModule) -> None:
    calls = [(c.layer.kind, c.layer.name) for c in lower(network, cpu("x86-64")).calls]
    assert calls == [
        ("quantize", "input"), ("conv2d", "stem"), ("conv2d", "layer0"), ("conv2d", "layer1"),
        ("conv2d", "layer2"), ("conv2d", "narrow"), ("avg_pool2d", "pool"), ("elementwise", "z"),
        ("dense", "fc"),
    ]  # fmt: skip


def test_main_quantized_is_main_on_quantized_input(network: tvm.IRModule) -> None:
    x = RNG.normal(size=SHAPE).astype(np.float32) * 3
    trace = ReferenceExecutor(network).trace(x)
    built = check_network(network, x)
    found = built.run(trace["input"], "main_quantized")
    np.testing.assert_array_equal(found, trace["logits"])


def test_integer_output() -> None:
    mod = module(SHAPE, "float32", lambda b, x: _network(b, x, dequantize=False))
    check_network(mod, RNG.normal(size=SHAPE).astype(np.float32) * 3)


def test_integer_input_has_no_second_entry() -> None:
    mod = with_meta(module(SHAPE, "uint8", lambda b, x: _conv(b, x, "c")), input_range=[0, 15])
    lowered = lower(mod, cpu("x86-64"))
    assert "main_quantized" not in [g.name_hint for g in lowered.mod.get_global_vars()]
    assert lowered.calls[1].layer.data.tag == "u4"


def test_input_range_comes_from_facts_type_or_quantizer(network: tvm.IRModule) -> None:
    plain = FuseEpilogue(module(SHAPE, "int8", lambda b, x: _conv(b, x, "c")))
    assert input_range(plain, "int8") == (-128, 127)
    assert input_range(with_meta(plain, input_range=[-7, 7]), "int8") == (-7, 7)
    assert input_range(FuseEpilogue(network), "int8") == (-127, 127)


def test_input_that_is_read_twice_is_not_quantized_outside() -> None:
    def emit(b, x):
        q = b.emit(ops.quantize(x, 0.02, 0, name="input", qmin=0, qmax=255, dtype="uint8"))
        real = b.emit(ops.dequantize(q, 0.02, 0, name="input.dq", qmin=0, qmax=255))
        return b.emit(relax.op.add(real, x))

    mod = module(SHAPE, "float32", emit)
    assert not has_quantized_input(FuseEpilogue(mod))
    built = check_network(mod, RNG.normal(size=SHAPE).astype(np.float32) * 3)
    assert "main_quantized" not in [g.name_hint for g in built.lowered.mod.get_global_vars()]


def test_a_float_model_passes_through() -> None:
    mod = module(SHAPE, "float32", lambda b, x: b.emit(relax.op.nn.relu(x)))
    built = check_network(mod, RNG.normal(size=SHAPE).astype(np.float32))
    assert built.lowered.calls == []


def test_several_results_are_an_error() -> None:
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    b = relax.BlockBuilder()
    with b.function("main", [x]):
        with b.dataflow():
            outs = [b.emit_output(relax.op.nn.relu(x)), b.emit_output(relax.op.negative(x))]
        b.emit_func_output(relax.Tuple(outs))
    with pytest.raises(UnsupportedError, match="returns several tensors"):
        lower(b.get(), cpu("x86-64"))


def test_facts_of_the_module_are_kept(network: tvm.IRModule) -> None:
    mod = with_meta(network, name="net")
    assert dict(lower(mod, cpu("x86-64")).mod.attrs) == dict(mod.attrs)


def test_entry_points_share_kernels_and_constants(network: tvm.IRModule) -> None:
    lowered = lower(network, cpu("x86-64"))
    reads = [_constants(lowered.mod[name]) for name in ("main", "main_quantized")]
    assert set(reads[1]) < set(reads[0])  # all but the quantizer's scale
    assert len(reads[0]) - len(reads[1]) == 1
    assert len(_imports(lowered.mod)) == 1


def _constants(func: relax.Function) -> list[tvm.ir.GenericConst]:
    calls = [b.value for b in dataflow_bindings(func) if op_name(b.value) == "relax.call_tir"]
    return [a for c in calls for a in c.args[1].fields if isinstance(a, tvm.ir.GenericConst)]
