"""QLinearConv and its family: the same integers as an emulation in fractions, element by element.

The emulation knows what the operators are defined to compute (exact, then rounded half up as
numerics.md says); nothing in it is taken from the importer.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tvm_q4.errors import UnsupportedError
from tvm_q4.meta import model_meta
from tvm_q4.ops import attrs_of
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.check_integer_only import check_integer_only
from tvm_q4.relay_passes.pipeline import to_integer

onnx = pytest.importorskip("onnx")

from tests.frontend.onnx_graphs import MICROSOFT, Onnx, constant, q4_calls  # noqa: E402
from tvm_q4.frontend.onnx_qdq import import_onnx  # noqa: E402

RNG = np.random.default_rng(1)
IN, OUT = (np.float32(0.043), 121), (np.float32(0.0611), 117)
SCALES = np.array([0.013, 0.027, 0.0071, 0.051], np.float32)
WIDE = np.float32(0.37)
Ints = NDArray[Any]


def exactly(values: Ints, scale: Any, zero: int) -> Ints:
    """``scale * (values - zero)`` as fractions."""
    scale = Fraction(float(scale))
    steps = (np.asarray(values, object) - int(zero)).ravel()
    return np.array([int(v) * scale for v in steps], object).reshape(np.shape(values))


def rounded(values: Ints, scale: Any, zero: int, dtype: str) -> Ints:
    """Half up, saturated."""
    info = np.iinfo(dtype)
    unit = Fraction(float(scale))
    steps = [int((v / unit + Fraction(1, 2)).__floor__()) + int(zero) for v in values.ravel()]
    return np.clip(np.array(steps), info.min, info.max).reshape(values.shape)


def convolved(x: Ints, w: Ints, bias: Ints, pads: list[int], stride: int, groups: int) -> Ints:
    """Convolution of fractions; padding is zero."""
    t, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (t, bottom), (left, right)), constant_values=Fraction(0))
    o, ci, kh, kw = w.shape
    oh, ow = ((s - k) // stride + 1 for s, k in zip(x.shape[2:], (kh, kw), strict=True))
    out = np.empty((len(x), o, oh, ow), object)
    for n, k, i, j in product(range(len(x)), range(o), range(oh), range(ow)):
        g = k // (o // groups)
        rows, columns = slice(i * stride, i * stride + kh), slice(j * stride, j * stride + kw)
        window = x[n, g * ci : (g + 1) * ci, rows, columns]
        out[n, k, i, j] = (window * w[k]).sum() + bias[k]
    return out


def quantized_input(b: Onnx, dtype: str = "uint8", zero: int = IN[1]) -> str:
    return b.q("x", IN[0], zero, dtype)


def returned(b: Onnx, y: str, dtype: str, scale: Any = OUT[0], zero: int = OUT[1]) -> Any:
    return b.model(b.dq(y, scale, zero, dtype))


def integers(b: Onnx, model: Any, name: str) -> tuple[Any, Ints, Ints]:
    """The integer module, its quantized input and the tensor `name` on a random image."""
    mod, tensors = traced(b, model)
    assert len(np.unique(tensors[name])) > min(20, tensors[name].size // 3)
    return mod, tensors["input"], tensors[name]


def traced(b: Onnx, model: Any) -> tuple[Any, dict[str, Ints]]:
    """The integer module and all its tensors on a random image."""
    shape = [d.dim_value for d in b.input.type.tensor_type.shape.dim]
    x = RNG.uniform(-7, 7, shape).astype(np.float32)
    mod = to_integer(import_onnx(model))
    assert check_integer_only(mod) == []
    return mod, ReferenceExecutor(mod).trace(x)


@pytest.mark.parametrize(
    ("dtype", "w_dtype", "channels", "groups", "stride", "pads"),
    [
        ("uint8", "int8", True, 1, 1, [1, 1, 1, 1]),
        ("int8", "int8", True, 2, 2, [0, 1, 2, 0]),
        ("uint8", "uint8", False, 1, 1, [0, 0, 0, 0]),
    ],
)
def test_qlinear_conv(dtype, w_dtype, channels, groups, stride, pads) -> None:
    b = Onnx((2, 4, 5, 4))
    zero = 5 if dtype == "int8" else IN[1]
    z_out = 3 if dtype == "int8" else OUT[1]
    z_w = 128 if w_dtype == "uint8" else 0
    w = RNG.integers(-127, 128, (4, 4 // groups, 3, 3)) + z_w
    bias = RNG.integers(-3000, 3000, 4).astype(np.int32)
    scale = SCALES if channels else SCALES[:1]
    x = quantized_input(b, dtype, zero)
    y = b.node(
        "QLinearConv", x, *b.pair(IN[0], zero, dtype), b.const(w, w_dtype, "stem.weight_quantized"),
        *b.pair(scale if channels else scale[0], np.full(scale.shape, z_w) if channels else z_w,
                w_dtype),
        *b.pair(WIDE, z_out, dtype), b.const(bias), pads=pads, strides=[stride] * 2, group=groups,
    )  # fmt: skip
    mod, q, found = integers(b, returned(b, y, dtype, WIDE, z_out), "stem.out")
    units = np.broadcast_to(scale, 4)
    weight = np.stack([exactly(w[o], units[o], z_w) for o in range(4)])
    unit = Fraction(float(IN[0]))
    real_bias = [int(v) * unit * Fraction(float(s)) for v, s in zip(bias, units, strict=True)]
    out = convolved(exactly(q, IN[0], zero), weight, real_bias, pads, stride, groups)
    np.testing.assert_array_equal(found, rounded(out, WIDE, z_out, dtype))
    np.testing.assert_array_equal(constant(mod, "stem", 1), w - z_w)
    folded = bias - zero * (w - z_w).reshape(4, -1).sum(axis=1)
    np.testing.assert_array_equal(constant(mod, "stem", 2), folded)


def test_a_bias_near_the_ends_of_int32_is_taken_over_exactly() -> None:
    b = Onnx((1, 1, 4, 4))
    bias = np.array([2**31 - 40000, -(2**31) + 40000, 2**24 + 1, -7], np.int32)
    y = b.node(
        "QLinearConv", b.q("x", IN[0]), *b.pair(IN[0], 0, "int8"),
        b.const(np.ones((4, 1, 1, 1)), "int8"), *b.pair(SCALES, [0] * 4, "int8"),
        *b.pair(9e4, 0, "int8"), b.const(bias),
    )  # fmt: skip
    mod = to_integer(import_onnx(returned(b, y, "int8", 9e4, 0)))
    layer = next(n for n, c in q4_calls(mod).items() if c.op.name == "q4.conv2d")
    np.testing.assert_array_equal(constant(mod, layer, 2), bias)


def flat_input(b: Onnx) -> str:
    return b.node("Flatten", quantized_input(b))


def test_qlinear_matmul() -> None:
    b = Onnx((2, 3, 2, 2))
    w = RNG.integers(-127, 128, (12, 4))
    y = b.node(
        "QLinearMatMul", flat_input(b), *b.pair(*IN, "uint8"), b.const(w, "int8", "fc.weight"),
        *b.pair(SCALES, [0] * 4, "int8"), *b.pair(*OUT, "uint8"),
    )  # fmt: skip
    mod, q, found = integers(b, returned(b, y, "uint8"), "fc.out")
    weight = np.stack([exactly(w[:, o], SCALES[o], 0) for o in range(4)], axis=1)
    out = exactly(q.reshape(2, 12), *IN) @ weight
    np.testing.assert_array_equal(found, rounded(out, *OUT, "uint8"))
    np.testing.assert_array_equal(constant(mod, "fc", 1), w.T)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("quantized", [True, False])
def test_qgemm(transposed: int, quantized: bool) -> None:
    b = Onnx((2, 3, 2, 2))
    w, bias = RNG.integers(-127, 128, (4, 12)), RNG.integers(-900, 900, 4).astype(np.int32)
    stored = w if transposed else w.T
    y = b.node(
        "QGemm", flat_input(b), *b.pair(*IN, "uint8"), b.const(stored, "int8", "fc.weight"),
        *b.pair(SCALES, [0] * 4, "int8"), b.const(bias),
        *(b.pair(*OUT, "uint8") if quantized else []),
        domain=MICROSOFT, transB=transposed, alpha=1.0,
    )  # fmt: skip
    model = returned(b, y, "uint8") if quantized else b.model(y)
    mod, q, found = integers(b, model, "fc.out" if quantized else "fc")
    if quantized:
        unit = Fraction(float(IN[0]))
        weight = np.stack([exactly(w[o], SCALES[o], 0) for o in range(4)])
        real = np.array(
            [int(v) * unit * Fraction(float(s)) for v, s in zip(bias, SCALES, strict=True)]
        )
        out = exactly(q.reshape(2, 12), *IN) @ weight.T + real
        np.testing.assert_array_equal(found, rounded(out, *OUT, "uint8"))
    else:
        steps = q.reshape(2, 12).astype(int) - IN[1]
        np.testing.assert_array_equal(found, steps @ w.T + bias)
        assert list(q4_calls(mod))[-1] == "fc.dq"


def test_qlinear_add_of_two_branches() -> None:
    b = Onnx((1, 2, 5, 4))
    x = quantized_input(b)
    other = b.q(b.dq(x, *IN, "uint8"), 0.031, -9)
    y = b.node(
        "QLinearAdd", x, *b.pair(*IN, "uint8"), other, *b.pair(0.031, -9, "int8"),
        *b.pair(*OUT, "uint8"), domain=MICROSOFT, name="/block/Add_quant",
    )  # fmt: skip
    mod, q, found = integers(b, returned(b, y, "uint8"), "block.add")
    second = rounded(exactly(q, *IN), np.float32(0.031), -9, "int8")
    total = exactly(q, *IN) + exactly(second, np.float32(0.031), -9)
    np.testing.assert_array_equal(found, rounded(total, *OUT, "uint8"))
    assert attrs_of(q4_calls(mod)["block.add"])["form"] == "fused"


def test_pools() -> None:
    b = Onnx((1, 2, 6, 5))
    x = quantized_input(b)
    pooled = b.node("MaxPool", x, kernel_shape=[2, 3], strides=[2, 1], name="/pool/MaxPool")
    y = b.node(
        "QLinearAveragePool", pooled, *b.pair(*IN, "uint8"), *b.pair(*OUT, "uint8"),
        domain=MICROSOFT, kernel_shape=[2, 2], pads=[1, 0, 0, 1], name="/mean/AveragePool_quant",
        count_include_pad=0,
    )  # fmt: skip
    z = b.node(
        "QLinearGlobalAveragePool", y, *b.pair(*OUT, "uint8"), *b.pair(0.021, 100, "uint8"),
        domain=MICROSOFT, channels_last=0, name="/last/GlobalAveragePool_quant",
    )  # fmt: skip
    model = returned(b, z, "uint8", 0.021, 100)
    _, trace = traced(b, model)
    q, means = trace["input"], trace["mean.out"]
    maxima = np.stack([q[..., i : i + 2, :].max(axis=-2) for i in (0, 2, 4)], axis=-2)
    maxima = np.stack([maxima[..., j : j + 3].max(axis=-1) for j in range(3)], axis=-1)
    real = exactly(maxima, *IN)
    want = np.empty((1, 2, 3, 3), object)
    for i, j in np.ndindex(3, 3):
        window = real[0, :, max(i - 1, 0) : i + 1, j : j + 2].reshape(2, -1)
        want[0, :, i, j] = window.sum(axis=1) / Fraction(window.shape[1])
    np.testing.assert_array_equal(means, rounded(want, *OUT, "uint8"))
    total = exactly(means, *OUT).sum(axis=(2, 3), keepdims=True) / Fraction(9)
    last = rounded(total, np.float32(0.021), 100, "uint8")
    np.testing.assert_array_equal(trace["last.out"], last)


def test_qlinear_concat_requantizes_each_branch() -> None:
    b = Onnx((1, 2, 4, 4))
    x = quantized_input(b)
    other = b.q(b.dq(x, *IN, "uint8"), 0.02, 7)
    y = b.node(
        "QLinearConcat", *b.pair(*OUT, "uint8"), x, *b.pair(*IN, "uint8"), other,
        *b.pair(0.02, 7, "int8"), domain=MICROSOFT, axis=1, name="/cat/Concat_quant",
    )  # fmt: skip
    _, q, found = integers(b, returned(b, y, "uint8"), "cat.concat")
    second = rounded(exactly(q, *IN), np.float32(0.02), 7, "int8")
    parts = [exactly(q, *IN), exactly(second, np.float32(0.02), 7)]
    np.testing.assert_array_equal(found, rounded(np.concatenate(parts, 1), *OUT, "uint8"))


def test_the_style_is_recorded() -> None:
    b = Onnx((2, 3, 2, 2))
    y = b.node(
        "QLinearMatMul", flat_input(b), *b.pair(*IN, "uint8"), b.const(np.ones((12, 1)), "int8"),
        *b.pair(0.1, 0, "int8"), *b.pair(*OUT, "uint8"),
    )  # fmt: skip
    facts = model_meta(import_onnx(returned(b, y, "uint8")))
    assert facts["source_details"] == {"opset": "21", "quantization": "QOperator"}
    assert (facts["source_format"], facts["source_tool"]) == ("onnx", "by hand")


@pytest.mark.parametrize("op", ["QLinearLeakyRelu", "QLinearSigmoid", "QLinearMul"])
def test_operators_without_an_integer_form_are_refused_by_name(op: str) -> None:
    b = Onnx()
    x = quantized_input(b)
    y = b.node(op, x, *b.pair(*IN, "uint8"), *b.pair(*OUT, "uint8"), domain=MICROSOFT, name="a/b")
    with pytest.raises(UnsupportedError, match=rf"node 'a/b' \(com.microsoft.{op}\)"):
        import_onnx(returned(b, y, "uint8"))
