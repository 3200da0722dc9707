"""Quantize and dequantize in ONNX: which integers, scales, zero points and bits are imported."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tvm_q4.errors import UnsupportedError
from tvm_q4.meta import model_meta
from tvm_q4.ops import attrs_of
from tvm_q4.quant import dyadic
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.pipeline import to_integer

onnx = pytest.importorskip("onnx")

from tests.frontend.onnx_graphs import MICROSOFT, Onnx, constant, q4_calls, run_onnx  # noqa: E402
from tvm_q4.frontend.onnx_qdq import import_onnx  # noqa: E402

RNG = np.random.default_rng(0)
SCALES = np.array([0.013, 0.027, 0.0071, 0.051], np.float32)
WEIGHTS = RNG.integers(-7, 8, (4, 3, 3, 3)).astype(np.int8)
FLOATS = (WEIGHTS * SCALES.reshape(4, 1, 1, 1)).astype(np.float32)
BIAS = RNG.integers(-900, 900, 4).astype(np.int32)
IN, OUT = (np.float32(0.043), 131), (np.float32(0.0611), 117)


def int8_by_channel(b: Onnx) -> tuple[str, int]:
    return b.dq(b.const(WEIGHTS, name="conv.weight"), SCALES, [0] * 4, axis=0), 8


def unsigned_by_channel(b: Onnx) -> tuple[str, int]:
    zeros = [128, 120, 100, 134]
    w = (WEIGHTS.astype(int) + np.reshape(zeros, (4, 1, 1, 1))).astype(np.uint8)
    return b.dq(b.const(w, name="conv.weight"), SCALES, zeros, "uint8", axis=-4), 8


def float_by_channel(b: Onnx) -> tuple[str, int]:
    q = b.q(b.const(FLOATS, name="conv.weight"), SCALES, [0] * 4, axis=0)
    return b.dq(q, SCALES, [0] * 4, axis=0), 8


def int4_by_channel(b: Onnx) -> tuple[str, int]:
    w = b.const(WEIGHTS, "int4", "conv.weight")
    return b.node("DequantizeLinear", w, b.const(SCALES), axis=0), 4


def uint4_by_channel(b: Onnx) -> tuple[str, int]:
    w = b.const(WEIGHTS.astype(int) + 8, "uint4", "conv.weight")
    zero = b.const([8] * 4, "uint4")
    return b.node("DequantizeLinear", w, b.const(SCALES), zero, axis=0), 4


def float_behind_int4(b: Onnx) -> tuple[str, int]:
    args = [b.const(SCALES), b.const([0] * 4, "int4")]
    q = b.node("QuantizeLinear", b.const(FLOATS, name="conv.weight"), *args, axis=0)
    return b.node("DequantizeLinear", q, *args, axis=0), 4


def float_with_output_type(b: Onnx) -> tuple[str, int]:
    kind = {"axis": 0, "output_dtype": onnx.TensorProto.INT4}
    w, scale = b.const(FLOATS, name="conv.weight"), b.const(SCALES)
    q = b.node("QuantizeLinear", w, scale, **kind)
    return b.node("DequantizeLinear", q, scale, axis=0), 4


def clipped_constant(b: Onnx) -> tuple[str, int]:
    """As Brevitas writes weights that are quantized already."""
    bounds = [b.const(-7, "int8"), b.const(7, "int8")]
    wide = np.where(WEIGHTS == 7, 93, WEIGHTS).astype(np.int8)
    clip = b.node("Clip", b.const(wide, name="conv.weight"), *bounds)
    return b.dq(clip, SCALES, [0] * 4, axis=0), 4


def clipped_float(b: Onnx) -> tuple[str, int]:
    bounds = [b.const(-7, "int8"), b.const(7, "int8")]
    q = b.q(b.const(FLOATS * np.float32(1.001), name="conv.weight"), SCALES, [0] * 4, axis=0)
    return b.dq(b.node("Clip", q, *bounds), SCALES, [0] * 4, axis=0), 4


def microsofts_own(b: Onnx) -> tuple[str, int]:
    w, pair = b.const(WEIGHTS, name="conv.weight"), b.pair(SCALES, [0] * 4, "int8")
    return b.node("DequantizeLinear", w, *pair, domain=MICROSOFT, axis=0), 8


def qonnx(b: Onnx) -> tuple[str, int]:
    scale = b.const(SCALES.reshape(4, 1, 1, 1))
    rest = [b.const(0, "float32"), b.const(4, "float32")]
    w = b.const(FLOATS, name="conv.weight")
    kind = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}
    return b.node("Quant", w, scale, *rest, domain="qonnx.custom_op.general", **kind), 4


FORMS = [
    int8_by_channel, unsigned_by_channel, float_by_channel, int4_by_channel, uint4_by_channel,
    float_behind_int4, float_with_output_type, clipped_constant, clipped_float, microsofts_own,
    qonnx,
]  # fmt: skip


def network(weight: Callable[[Onnx], tuple[str, int]]) -> tuple[Onnx, onnx.ModelProto, int]:
    """A convolution between quantizers whose zero points lie in the middle, without a ReLU."""
    b = Onnx()
    x = b.qdq("x", *IN, "uint8")
    w, bits = weight(b)
    scale = (np.float64(IN[0]) * SCALES).astype(np.float32)
    bias = b.dq(b.const(BIAS), scale, [0] * 4, "int32", axis=0)
    y = b.node("Conv", x, w, bias, pads=[1, 1, 1, 1])
    out = b.qdq(y, *OUT, "uint8")
    return b, b.model(out, domains=["qonnx.custom_op.general"]), bits


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_a_weight_of_each_form_gives_the_same_integers(form) -> None:
    _, model, bits = network(form)
    mod = to_integer(import_onnx(model))
    calls = q4_calls(mod)
    assert list(calls) == ["input", "conv", "conv.out", "conv.out.dq"]
    assert attrs_of(calls["conv"])["weight_bits"] == bits
    assert attrs_of(calls["conv"])["zero_point"] == IN[1]
    np.testing.assert_array_equal(constant(mod, "conv", 1), WEIGHTS)
    folded = BIAS - IN[1] * WEIGHTS.reshape(4, -1).astype(int).sum(axis=1)
    np.testing.assert_array_equal(constant(mod, "conv", 2), folded)
    ratios = np.float64(IN[0]) * SCALES.astype(np.float64) / np.float64(OUT[0])
    pairs = [dyadic(r) for r in ratios]
    np.testing.assert_array_equal(constant(mod, "conv.out", 1), [m for m, _ in pairs])
    np.testing.assert_array_equal(constant(mod, "conv.out", 2), [e for _, e in pairs])
    assert attrs_of(calls["conv.out"])["zero_point"] == OUT[1]
    assert attrs_of(calls["input"])["form"] == "divide"


def test_integers_equal_an_emulation_in_fractions() -> None:
    """Accumulators and one rounding half up, from the file's own numbers."""
    _, model, _ = network(int8_by_channel)
    x = RNG.uniform(-7, 7, (1, 3, 6, 5)).astype(np.float32)
    q = np.clip(np.rint(x / IN[0]) + IN[1], 0, 255).astype(int) - IN[1]
    padded = np.pad(q, ((0, 0), (0, 0), (1, 1), (1, 1)))
    want = np.zeros((1, 4, 6, 5), int)
    for o, i, j in np.ndindex(4, 6, 5):
        acc = int((padded[0, :, i : i + 3, j : j + 3] * WEIGHTS[o].astype(int)).sum() + BIAS[o])
        ratio = Fraction(float(IN[0])) * Fraction(float(SCALES[o])) / Fraction(float(OUT[0]))
        steps = (acc * ratio + Fraction(1, 2)).__floor__() + OUT[1]
        want[0, o, i, j] = min(max(steps, 0), 255)
    mod = import_onnx(model)
    found = ReferenceExecutor(to_integer(mod)).trace(x)["conv.out"]
    np.testing.assert_array_equal(found, want)
    assert len(np.unique(found)) > 40
    fake = ReferenceExecutor(mod)
    np.testing.assert_array_equal(fake.run(x), run_onnx(model, x))
    assert abs(fake.trace(x)["conv.out"].astype(int) - found).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "zero"), [("int8", 5), ("uint8", 250), ("int16", -300), ("uint16", 40000)]
)
def test_activations_of_each_type_over_their_whole_range(dtype: str, zero: int) -> None:
    b = Onnx((1, 1, 64, 64))
    model = b.model(b.qdq("x", 0.0371, zero, dtype))
    info = np.iinfo(dtype)
    reach = 0.04 * max(info.max - zero, zero - info.min)
    x = np.linspace(-reach, reach, 64 * 64, dtype="float32").reshape(1, 1, 64, 64)
    mod = import_onnx(model)
    np.testing.assert_array_equal(ReferenceExecutor(mod).run(x), run_onnx(model, x))
    steps = ReferenceExecutor(mod).trace(x)["input"]
    assert steps.min() == info.min and steps.max() == info.max and steps.dtype == dtype


def test_quantizers_divide_where_the_reciprocal_would_round_elsewhere() -> None:
    scale = np.float32(0.11)
    ties = (np.arange(-120, 120) + 0.5).astype(np.float32) * scale
    x = np.concatenate([ties, np.nextafter(ties, np.float32(99))]).reshape(1, 1, 2, 240)
    assert (np.rint(x / scale) != np.rint(x * np.float32(1 / np.float64(scale)))).any()
    b = Onnx((1, 1, 2, 240))
    model = b.model(b.qdq("x", scale))
    np.testing.assert_array_equal(ReferenceExecutor(import_onnx(model)).run(x), run_onnx(model, x))


def test_a_quantizer_without_zero_point_makes_uint8() -> None:
    b = Onnx()
    scale = b.const(0.1, "float32")
    q = b.node("QuantizeLinear", "x", scale)
    a = attrs_of(q4_calls(import_onnx(b.model(b.node("DequantizeLinear", q, scale))))["input"])
    assert (a["dtype"], a["qmin"], a["qmax"]) == ("uint8", 0, 255)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "tag"),
    [(0, 15, "uint8", (0, 15)), (-8, 7, "int8", (-8, 7)), (-127, 127, "int8", (-127, 127)),
     (-500, 3, "int16", (-500, 3))],
)  # fmt: skip
def test_the_bounds_of_a_clip_are_the_range_of_its_quantizer(low, high, dtype, tag) -> None:
    b = Onnx((1, 1, 8, 8))
    model = b.model(b.clipped("x", 0.25, low, high, dtype))
    mod = import_onnx(model)
    calls = q4_calls(mod)
    assert list(calls) == ["input", "input.dq"]
    for name in calls:
        assert (attrs_of(calls[name])["qmin"], attrs_of(calls[name])["qmax"]) == tag
    x = np.linspace(-40, 40, 64, dtype="float32").reshape(1, 1, 8, 8)
    np.testing.assert_array_equal(ReferenceExecutor(mod).run(x), run_onnx(model, x))
    assert model_meta(mod)["source_details"]["quantization"] == "QCDQ"


def test_a_clip_of_integers_that_other_nodes_bypass_is_refused() -> None:
    b = Onnx()
    q = b.q("x", 0.1)
    clip = b.node("Clip", q, b.const(-7, "int8"), b.const(7, "int8"))
    total = b.node("Add", b.dq(q, 0.1), b.dq(clip, 0.1))
    with pytest.raises(UnsupportedError, match=r"\(Clip\).*-7\.\.7.*only reader"):
        import_onnx(b.model(total))


def test_a_clip_that_changes_nothing_is_no_obstacle() -> None:
    b = Onnx()
    q = b.q("x", 0.1)
    clip = b.node("Clip", q, b.const(-128, "int8"))
    total = b.node("Add", b.dq(q, 0.1), b.dq(clip, 0.1))
    assert list(q4_calls(import_onnx(b.model(total)))) == ["input", "input.dq"]


def test_qonnx_activations_take_their_bits_and_zero_point() -> None:
    b = Onnx()
    rest = [b.const(v, "float32") for v in (0.5, 2, 4)]
    y = b.node("Quant", "x", *rest, domain="onnx.brevitas", signed=0, narrow=1)
    mod = import_onnx(b.model(y, domains=["onnx.brevitas"]))
    a = attrs_of(q4_calls(mod)["input"])
    assert (a["qmin"], a["qmax"], a["dtype"]) == (0, 14, "uint8")
    x = np.arange(90, dtype="float32").reshape(1, 3, 6, 5) - 40
    want = (np.clip(np.rint(x / 0.5 + 2), 0, 14) - 2) * 0.5
    np.testing.assert_array_equal(ReferenceExecutor(mod).run(x), want)
    assert model_meta(mod)["source_details"]["quantization"] == "QONNX"


def test_a_quantizer_between_convolution_and_add_is_kept() -> None:
    """Numerics: the accumulator is requantized to that type first."""
    b = Onnx((1, 4, 4, 4))
    x = b.qdq("x", 0.05)
    w = b.dq(b.const(RNG.integers(-9, 9, (4, 4, 1, 1)), "int8"), SCALES, [0] * 4, axis=0)
    y = b.qdq(b.node("Conv", x, w, name="conv"), 0.02)
    out = b.qdq(b.node("Relu", b.node("Add", y, x, name="add")), 0.03, -128)
    mod = to_integer(import_onnx(b.model(out)))
    calls = q4_calls(mod)
    assert list(calls) == ["input", "conv", "conv.out", "add", "add.dq"]
    assert attrs_of(calls["add"])["lo"] == -128 and attrs_of(calls["add"])["zero_point"] == -128


@pytest.mark.parametrize("zero", [0, 17])
def test_relu6_becomes_the_clamp_of_the_quantizer(zero: int) -> None:
    b = Onnx((1, 3, 4, 4))
    w = b.dq(b.const(np.eye(3).reshape(3, 3, 1, 1) * 50, "int8"), [0.02] * 3, [0] * 3, axis=0)
    y = b.node("Conv", b.qdq("x", 0.1), w, name="conv")
    y = b.node("Clip", y, b.const(0, "float32"), b.const(6, "float32"))
    mod = to_integer(import_onnx(b.model(b.qdq(y, 0.03, zero, "uint8"))))
    a = attrs_of(q4_calls(mod)["conv.out"])
    assert (a["lo"], a["hi"]) == (zero, min(255, zero + round(6 / 0.03)))


def test_an_asymmetric_weight_beyond_int8_stays_float_and_is_reported() -> None:
    from tvm_q4.relay_passes.check_integer_only import check_integer_only

    b = Onnx((1, 1, 4, 4))
    w = b.dq(
        b.const(
            [
                [
                    [[0]],
                ],
                [[[255]]],
            ],
            "uint8",
        ),
        0.1,
        90,
        "uint8",
    )
    y = b.qdq(b.node("Conv", b.qdq("x", 0.1), w, name="conv"), 0.2)
    found = check_integer_only(to_integer(import_onnx(b.model(y))))
    assert [(f["name"], "int8 around its zero point" in f["reason"]) for f in found] == [
        ("conv", True)
    ]
