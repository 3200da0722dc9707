"""Float operators of ONNX against its own reference implementation, opset by opset.

Inputs and parameters are multiples of 1/16 and small integers, so that float32 sums are exact and
results must be equal; means and normalisations differ by float32 rounding alone (`close`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tvm_q4.errors import UnsupportedError
from tvm_q4.reference import ReferenceExecutor

onnx = pytest.importorskip("onnx")

from tests.frontend.onnx_graphs import Onnx, ramp, run_onnx  # noqa: E402
from tvm_q4.frontend.onnx_qdq import import_onnx  # noqa: E402

RNG = np.random.default_rng(2)
NEWEST = onnx.defs.onnx_opset_version()
ULPS = 4e-7


def agree(b: Onnx, y: str, shape: tuple[int, ...], tolerance: float = 0.0) -> None:
    """Both implementations give the same, in shape too."""
    model, x = b.model(y), ramp(*shape)
    want = run_onnx(model, x)
    found = ReferenceExecutor(import_onnx(model)).run(x)
    assert found.shape == want.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance)


def integers(b: Onnx, *shape: int) -> str:
    return b.const(RNG.integers(-3, 4, shape), "float32")


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"pads": [1, 0, 2, 1], "strides": [2, 1]},
    {"group": 2, "dilations": [2, 1], "pads": [2, 1, 2, 1]},
    {"group": 4, "kernel_shape": [3, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID", "strides": [1, 3]},
]


@pytest.mark.parametrize("attrs", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("opset", [13, NEWEST])
def test_conv(attrs: dict[str, Any], opset: int) -> None:
    b = Onnx((2, 4, 7, 6), opset)
    w = integers(b, 8, 4 // attrs.get("group", 1), 3, 2)
    agree(b, b.node("Conv", "x", w, integers(b, 8), **attrs), (2, 4, 7, 6))


@pytest.mark.parametrize("bias", [True, False])
def test_conv_and_batch_norm(bias: bool) -> None:
    b = Onnx((1, 3, 5, 5), 15)
    y = b.node("Conv", "x", integers(b, 4, 3, 1, 1), *([integers(b, 4)] if bias else []))
    parts = [b.const(v, "float32") for v in ([1, 2, -1, 0], [0, 1, 2, 3], [0.5, 1, 0, 2])]
    var = b.const([1, 2, 0.5, 4], "float32")
    agree(b, b.node("BatchNormalization", y, *parts, var, epsilon=1e-3), (1, 3, 5, 5), ULPS * 9)


POOLS: list[tuple[str, dict[str, Any]]] = [
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 1], "pads": [1, 1, 0, 0]}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", {"kernel_shape": [2, 3]}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 0, 1], "strides": [2, 1]}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
]


@pytest.mark.parametrize(("op", "attrs"), POOLS, ids=str)
@pytest.mark.parametrize("opset", [11, NEWEST])
def test_pools(op: str, attrs: dict[str, Any], opset: int) -> None:
    b = Onnx((1, 2, 8, 7), opset)
    agree(b, b.node(op, "x", **attrs), (1, 2, 8, 7), ULPS if op == "AveragePool" else 0)


@pytest.mark.parametrize("opset", [11, 18, NEWEST])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_means_over_height_and_width(opset: int, keepdims: int) -> None:
    b = Onnx((2, 3, 4, 5), opset)
    if opset < 18:
        y = b.node("ReduceMean", "x", axes=[-1, 2], keepdims=keepdims)
    else:
        y = b.node("ReduceMean", "x", b.const([3, -2], "int64"), keepdims=keepdims)
    agree(b, y, (2, 3, 4, 5), ULPS)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(op: str) -> None:
    b = Onnx((2, 3, 4, 5))
    agree(b, b.node(op, "x"), (2, 3, 4, 5), ULPS)


def flat(b: Onnx) -> str:
    return b.node("Flatten", "x")


def gemm(b: Onnx) -> str:
    return b.node("Gemm", flat(b), integers(b, 5, 12), integers(b, 5), transB=1)


def gemm_without_bias(b: Onnx) -> str:
    return b.node("Gemm", flat(b), integers(b, 12, 5))


def matmul_and_add(b: Onnx) -> str:
    return b.node("Add", integers(b, 5), b.node("MatMul", flat(b), integers(b, 12, 5)))


def transposed_weight(b: Onnx) -> str:
    w = b.node("Transpose", integers(b, 5, 12), perm=[1, 0])
    return b.node("MatMul", flat(b), w)


def relu(b: Onnx) -> str:
    return b.node("Relu", "x")


def clip(b: Onnx) -> str:
    return b.node("Clip", "x", b.const(-0.5, "float32"), b.const(0.75, "float32"))


def clip_below(b: Onnx) -> str:
    return b.node("Clip", "x", b.const(0, "float32"))


def clip_above(b: Onnx) -> str:
    return b.node("Clip", "x", "", b.const(0.25, "float32"))


def add(b: Onnx) -> str:
    return b.node("Add", "x", b.node("Relu", "x"))


def normalised_input(b: Onnx) -> str:
    mean = b.const(np.reshape([1, 2, 3], (1, 3, 1, 1)), "float32")
    return b.node("Mul", b.node("Sub", "x", mean), b.const(0.5, "float32"))


def softmax(b: Onnx) -> str:
    return b.node("Softmax", flat(b), axis=1)


def concat(b: Onnx) -> str:
    return b.node("Concat", "x", b.node("Relu", "x"), "x", axis=-3)


def pad_channels(b: Onnx) -> str:
    return b.node("Pad", "x", b.const([0, 2, 0, 0, 0, 1, 0, 0], "int64"))


def pad_with_value(b: Onnx) -> str:
    return b.node("Pad", "x", b.const([0, 0, 1, 2, 0, 0, 0, 1], "int64"), b.const(-1.5, "float32"))


def every_second_pixel(b: Onnx) -> str:
    ends = np.iinfo(np.int64).max
    lists = [[0, 0], [ends, ends], [2, 3], [2, 2]]
    return b.node("Slice", "x", *(b.const(v, "int64") for v in lists))


def reshape(b: Onnx) -> str:
    return b.node("Reshape", "x", b.const([0, -1, 2], "int64"))


def reshape_by_shape_arithmetic(b: Onnx) -> str:
    """As torch's older exporter writes ``x.view(x.size(0), -1)``."""
    first = b.node("Gather", b.node("Shape", "x"), b.const(0, "int64"), axis=0)
    size = b.node("Unsqueeze", first, b.const([0], "int64"))
    return b.node("Reshape", "x", b.node("Concat", size, b.const([-1], "int64"), axis=0))


def squeeze(b: Onnx) -> str:
    pooled = b.node("GlobalMaxPool", "x")
    return b.node("Squeeze", pooled, b.const([2, -1], "int64"))


def unsqueeze(b: Onnx) -> str:
    return b.node("Flatten", b.node("Unsqueeze", "x", b.const([1, -1], "int64")))


def transpose(b: Onnx) -> str:
    return b.node("Transpose", b.node("Relu", "x"), perm=[0, 2, 3, 1])


def nothing(b: Onnx) -> str:
    same = b.node("Dropout", b.node("Identity", "x"))
    return b.node("Relu", b.node("Cast", same, to=onnx.TensorProto.FLOAT))


EXACT = [
    gemm, gemm_without_bias, matmul_and_add, transposed_weight, relu, clip, clip_below, clip_above,
    add, normalised_input, concat, pad_channels, pad_with_value, every_second_pixel, reshape,
    reshape_by_shape_arithmetic, squeeze, unsqueeze, transpose, nothing,
]  # fmt: skip


@pytest.mark.parametrize("build", EXACT, ids=lambda f: f.__name__)
@pytest.mark.parametrize("opset", [13, NEWEST])
def test_operator(build: Callable[[Onnx], str], opset: int) -> None:
    b = Onnx((2, 3, 2, 2), opset)
    agree(b, build(b), (2, 3, 2, 2))


def test_softmax() -> None:
    b = Onnx((2, 3, 2, 2))
    agree(b, softmax(b), (2, 3, 2, 2), ULPS * 9)


def test_bounds_and_sizes_as_attributes_of_old_opsets() -> None:
    b = Onnx((2, 3, 2, 2), 9)
    y = b.node("Clip", "x", min=0.0, max=0.5)
    y = b.node("Pad", y, pads=[0, 0, 1, 0, 0, 0, 0, 1], value=0.25)
    y = b.node("Slice", y, starts=[1], ends=[99], axes=[2])
    agree(b, b.node("Unsqueeze", y, axes=[0]), (2, 3, 2, 2))


def test_padding_of_some_axes() -> None:
    b = Onnx((2, 3, 2, 2), 18)
    args = [b.const([1, 0, 2, 3], "int64"), "", b.const([-1, 2], "int64")]
    agree(b, b.node("Pad", "x", *args), (2, 3, 2, 2))


REFUSED: list[tuple[str, Callable[[Onnx], str], str]] = [
    ("leaky", lambda b: b.node("LeakyRelu", "x", name="leaky"), "is not supported"),
    ("Gemm", lambda b: b.node("Gemm", flat(b), integers(b, 12, 5), alpha=0.5), "alpha 0.5"),
    ("Mul", lambda b: b.node("Mul", "x", "x"), "with a parameter"),
    ("Add", lambda b: b.node("Add", "x", b.node("GlobalMaxPool", "x")), "must be equal"),
    ("MaxPool", lambda b: b.node("MaxPool", "x", kernel_shape=[2, 2, 2]), "not two positive"),
    ("MaxPool", lambda b: b.node("MaxPool", "x", kernel_shape=[2, 2], pads=[2, 0, 0, 0]), "reach"),
    ("MaxPool", lambda b: b.node("MaxPool", "x", kernel_shape=[9, 9]), "image is too small"),
    (
        "AveragePool",
        lambda b: b.node(
            "AveragePool", "x", kernel_shape=[2, 2], dilations=[1, 2], auto_pad="SAME_UPPER"
        ),
        "state the pads",
    ),
    ("AveragePool", lambda b: b.node("AveragePool", "x", kernel_shape=[1, 1], dilations=[1, 2]),
     "dilations"),
    ("ReduceMean", lambda b: b.node("ReduceMean", "x", b.const([1], "int64")), "only over 2, 3"),
    ("Pad", lambda b: b.node("Pad", "x", b.const([0] * 8, "int64"), mode="edge"), "'edge'"),
    ("Reshape", lambda b: b.node("Reshape", "x", b.const([5, -1], "int64")), "recorded shape"),
    ("Cast", lambda b: b.node("Cast", "x", to=7), "conversion"),
    ("Concat", lambda b: b.node("Concat", "x", flat(b), axis=1), "cannot be joined"),
    ("Transpose", lambda b: b.node("Transpose", "x", perm=[0, 1, 2, 2]), "perm"),
    ("Conv", lambda b: b.node("Conv", "x", integers(b, 4, 2, 1, 1)), "does not fit weight"),
    ("Conv", lambda b: b.node("Conv", "x", integers(b, 4, 3, 1)), "only 2-D"),
    ("Conv", lambda b: b.node("Conv", "x", integers(b, 4, 3, 9, 9)), "image is too small"),
    ("Cast", lambda b: b.node("Cast", "x", to=onnx.TensorProto.FLOAT16), "FLOAT16"),
    ("Softmax", lambda b: b.node("Softmax", "x", axis=7), "axis 7"),
    ("Dropout", lambda b: b.node("Dropout", "x", "", b.const(True)), "training mode"),
    ("Foo", lambda b: b.node("Foo", "x"), "no such operator"),
    ("my.own.Foo", lambda b: b.node("Foo", "x", domain="my.own"), "is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "build", "why"), REFUSED, ids=[f"{o}-{w}" for o, _, w in REFUSED])
def test_what_cannot_be_expressed_is_refused_with_its_node(op, build, why) -> None:
    b = Onnx((2, 3, 2, 2))
    with pytest.raises(UnsupportedError) as error:
        import_onnx(b.model(build(b), domains=["my.own"]))
    text = str(error.value)
    assert op in text and why in text and text.startswith("node '") and "\n" not in text
