"""Quantize, concat and element-wise kernels against the reference executor."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

from tests.modules import module as tensor_module
from tests.schedules.builders import (
    S4,
    S8,
    U4,
    U8,
    Batch,
    call_of,
    check,
    check_network,
    form_target,
    full_range,
    module,
    ratios,
    weights,
)
from tvm_q4 import ops
from tvm_q4.quant import IntRange

RNG = np.random.default_rng(17)
S16 = IntRange(-32768, 32767)


def _floats(shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
    """Values around the range of 8 bits, ties, and everything that is special but NaN."""
    x = RNG.normal(scale=scale * 90, size=shape).astype(np.float32)
    flat = x.reshape(-1)
    ties = ((np.arange(40) - 20 + 0.5) * scale).astype(np.float32)
    special = [np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -0.0, 0.0, 2.0**31, -(2.0**31)]
    values = np.concatenate([ties, np.float32(special)])
    flat[RNG.choice(flat.size, min(flat.size, values.size), replace=False)] = values[: flat.size]
    return x


def _quantize(
    shape: tuple[int, ...], out: IntRange, scale: Any = 0.0625, zero: int = 0, **attrs: Any
) -> tvm.IRModule:
    how = {"qmin": out.lo, "qmax": out.hi, "dtype": out.dtype} | attrs
    return tensor_module(
        shape, "float32", lambda b, x: b.emit(ops.quantize(x, scale, zero, name="q", **how))
    )


FORMS: dict[str, dict[str, Any]] = {
    "reciprocal": {}, "divide": {"form": "divide"},
    "mul_div": {"form": "mul_div", "numerator": 127.0, "denominator": 7.9},
}  # fmt: skip
QUANTIZERS = {
    f"{form}, {name}": _quantize(shape, out, scale, zero, **attrs)
    for form, attrs in FORMS.items()
    for name, (shape, out, scale, zero) in {
        "image": ((2, 3, 5, 21), IntRange(-127, 127), 0.0173, 0),
        "narrow image": ((1, 3, 7, 9), U8, 0.0625, 114),
        "one row of 16": ((1, 1, 1, 16), S8, 0.3, -128),
        "four channels": ((1, 4, 3, 33), U4, 0.1, 3),
        "five channels": ((1, 5, 4, 19), S8, 0.0625, 5),
        "many channels": ((2, 37, 3, 4), S8, 0.0173, -1),
        "features": ((3, 40), U8, 0.1, 7),
        "s16": ((1, 3, 4, 18), S16, 0.001, 0),
        "scales by channel": ((1, 3, 4, 18), S8, [0.01, 0.5, 0.0625], 2),
    }.items()
} | {"signed four bits": _quantize((1, 3, 5, 21), S4, 0.5)}


@cache
def _quantizers() -> Batch:
    batch = Batch()
    for name, mod in QUANTIZERS.items():
        batch.add(name, mod)
    return batch


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizers(name: str) -> None:
    shape = tuple(int(d) for d in QUANTIZERS[name]["main"].params[0].ty.shape)
    _quantizers().check(name, _floats(shape, 0.0625), _floats(shape, 0.1), _floats(shape, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["maddubs", "generic"])
def test_quantizers_of_older_cpus(form: str) -> None:
    batch = Batch(form_target(form))
    for name, mod in QUANTIZERS.items():
        batch.add(name, mod)
    for name, mod in QUANTIZERS.items():
        batch.check(name, _floats(tuple(int(d) for d in mod["main"].params[0].ty.shape), 0.0625))


def _image(channels: int, width: int, bits: int, groups: int = 1) -> tvm.IRModule:
    """A quantized image that a padded convolution reads."""

    def emit(b, x):
        q = b.emit(ops.quantize(x, 0.05, 9, name="q", qmin=-128, qmax=127, dtype="int8"))
        w = weights(RNG, bits, (16 * groups, channels // groups, 3, 3))
        how = {"zero_point": 9, "weight_bits": bits, "groups": groups}
        return b.emit(ops.conv2d(q, w, [5], name="c", strides=[2, 2], padding=[1, 2, 0, 1], **how))

    return tensor_module((2, channels, 6, width), "float32", emit)


@pytest.mark.parametrize(
    ("channels", "width", "bits", "groups", "physical"),
    [
        (3, 20, 8, 1, 4),  # sixteen pixels at a time
        (3, 7, 8, 1, 4),
        (7, 20, 8, 1, 8),
        (3, 20, 4, 1, 16),  # packed steps of eight channels need more than four
        (4, 20, 8, 2, 16),
        (9, 7, 8, 1, 16),
    ],
)
def test_images_keep_few_channels_for_eight_bit_convolutions(
    channels: int, width: int, bits: int, groups: int, physical: int
) -> None:
    lowered = check(_image(channels, width, bits, groups), _floats((2, channels, 6, width), 0.05))
    tensor = call_of(lowered, "quantize").layer.outputs[0][1]
    assert tensor.layout.channels == physical
    assert (tensor.layout.halo, tensor.fill) == ((1, 2, 0, 1), 9)


def test_images_that_an_epilogue_reads_have_whole_vectors() -> None:
    def emit(b, x):
        q = b.emit(ops.quantize(x, 0.05, 0, name="q", qmin=-128, qmax=127, dtype="int8"))
        w = weights(RNG, 8, (3, 3, 3, 3))
        acc = b.emit(ops.conv2d(q, w, [5], name="c", strides=[1, 1], padding=[1] * 4))
        m, e = ratios(RNG, 3, 36, 38)
        how = {"form": "fused", "lo": -128, "hi": 127, "dtype": "int8"}
        return b.emit(ops.add(acc, q, m, e, m, e, name="sum", **how))

    lowered = check(tensor_module((1, 3, 6, 7), "float32", emit), _floats((1, 3, 6, 7), 0.05))
    assert call_of(lowered, "quantize").layer.outputs[0][1].layout.channels == 16


def _concat(channels: tuple[int, ...], order: tuple[int, ...], halo: bool) -> tvm.IRModule:
    def emit(b, x):
        parts = []
        for i, c in enumerate(channels):
            w = weights(RNG, 8, (c, 6, 1, 1))
            acc = b.emit(ops.conv2d(x, w, [i], name=f"c{i}", strides=[1, 1], padding=[0] * 4))
            how = {"name": f"y{i}", "lo": 0, "hi": 255, "dtype": "uint8"}
            parts.append(b.emit(ops.requantize(acc, *ratios(RNG, c, 38, 40), **how)))
        joined = b.emit(ops.concat([parts[i] for i in order], name="joined"))
        if not halo:
            return joined
        w = weights(RNG, 8, (16, sum(channels[i] for i in order), 3, 3))
        how = {"strides": [1, 1], "padding": [1] * 4, "zero_point": 6}
        return b.emit(ops.conv2d(joined, w, [0], name="c", **how))

    return module((2, 6, 4, 5), U8, emit)


@pytest.mark.parametrize("halo", [False, True])
@pytest.mark.parametrize(
    ("channels", "order"),
    [((16, 16), (0, 1)), ((5, 20, 33), (2, 0, 1)), ((1, 1), (0, 1)), ((17, 3), (0, 0, 1, 0))],
)
def test_concat(channels: tuple[int, ...], order: tuple[int, ...], halo: bool) -> None:
    check(_concat(channels, order, halo), full_range(RNG, U8, (2, 6, 4, 5)))


def test_concat_of_features() -> None:
    def emit(b, x):
        m, e = ratios(RNG, 21, 31, 32)
        y = b.emit(ops.requantize(x, m, e, name="y", lo=-128, hi=127, dtype="int8"))
        return b.emit(ops.concat([y, x, y], name="joined"))

    check(module((3, 21), S8, emit), full_range(RNG, S8, (3, 21)))


@pytest.mark.parametrize("shape", [(2, 19, 3, 5), (4, 33)])
def test_elementwise_layers_on_their_own(shape: tuple[int, ...]) -> None:
    def emit(b, x):
        c = shape[1]
        joined = b.emit(ops.concat([x], name="joined"))
        m, e = ratios(RNG, c, 31, 33)
        y = b.emit(
            ops.requantize(joined, m, e, name="y", lo=-500, hi=900, dtype="int16", zero_point=77)
        )
        how = {"form": "two_sided", "lo": -128, "hi": 127, "dtype": "int8", "rhs_zero_point": 77}
        return b.emit(ops.add(joined, y, m, e, m, e, name="sum", **how))

    lowered = check(module(shape, S8, emit), full_range(RNG, S8, shape))
    assert [c.layer.kind for c in lowered.calls][1:3] == ["concat", "elementwise"]


def test_float_islands_get_plain_tensors_and_give_them_back() -> None:
    def emit(b, x):
        m, e = ratios(RNG, 19, 31, 32)
        y = b.emit(ops.requantize(x, m, e, name="y", lo=-128, hi=127, dtype="int8"))
        real = b.emit(ops.dequantize(y, 0.25, 3, name="y.dq", qmin=-128, qmax=127))
        curve = b.emit(relax.op.nn.relu(real))
        return b.emit(ops.quantize(curve, 0.5, 0, name="z", qmin=0, qmax=15, dtype="uint8"))

    check_network(module((2, 19, 3, 5), S8, emit), full_range(RNG, S8, (2, 19, 3, 5)))
