"""Quantization of float32 on CUDA: every form, packed widths, images, bit-exact in the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

from tests.cuda_emulator import EmulationError
from tests.modules import module
from tests.schedules.builders import S4, S8, U4, U8, call_of
from tests.schedules.cuda.builders import Reader, check
from tests.schedules.cuda.sass import needs_sass, sass
from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.schedules.cuda.rules import RULES

RNG = np.random.default_rng(37)
S16 = IntRange(-32768, 32767)
IMAGE_RULES = [Reader(), *RULES]
FORMS: dict[str, dict[str, Any]] = {
    "reciprocal": {}, "divide": {"form": "divide"},
    "mul_div": {"form": "mul_div", "numerator": 127.0, "denominator": 7.9},
}  # fmt: skip


def _floats(shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
    """Values around the range of 8 bits, ties, and everything that is special but NaN."""
    x = RNG.normal(scale=scale * 90, size=shape).astype(np.float32)
    ties = ((np.arange(40) - 20 + 0.5) * scale).astype(np.float32)
    special = [np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -0.0, 0.0, 2.0**31, -(2.0**31)]
    values = np.concatenate([np.float32(special), ties])
    x.flat[RNG.choice(x.size, min(x.size, values.size), replace=False)] = values[: x.size]
    return x


def _quantize(
    shape: tuple[int, ...], out: IntRange, scale: Any = 0.0625, zero: int = 0, **attrs: Any
) -> tvm.IRModule:
    how = {"qmin": out.lo, "qmax": out.hi, "dtype": out.dtype} | attrs
    return module(
        shape, "float32", lambda b, x: b.emit(ops.quantize(x, scale, zero, name="q", **how))
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "out", "scale", "zero"),
    [
        ((2, 37, 3, 4), S8, 0.0173, -1),
        ((1, 21, 3, 5), U4, [0.01, 0.5, 0.0625] * 7, 3),
        ((3, 40), S16, 0.001, 0),
    ],
    ids=["s8", "u4 by channel", "s16 features"],
)
def test_features(shape: tuple[int, ...], out: IntRange, scale: Any, zero: int, form: str) -> None:
    mod = _quantize(shape, out, scale, zero, **FORMS[form])
    lowered, _ = check(mod, _floats(shape, 0.0625), _floats(shape, 0.1), arch=80)
    tensor = call_of(lowered, "quantize").layer.outputs[0][1]
    assert (tensor.layout.bits, tensor.layout.channels % 16) == (out.bits, 0)


def test_clamp_inside_the_type() -> None:
    mod = _quantize((1, 33, 2, 3), IntRange(-7, 7), 0.5)
    check(mod, _floats((1, 33, 2, 3), 0.5), arch=75)
    check(_quantize((1, 33, 2, 3), S4, 0.5), _floats((1, 33, 2, 3), 0.5), arch=75)


def _image(
    channels: int, size: tuple[int, int], out: IntRange = S8, zero: int = 9, **attrs: Any
) -> tvm.IRModule:
    """An image that a padded 8-bit convolution reads."""

    def emit(b, x):
        how = {"qmin": out.lo, "qmax": out.hi, "dtype": out.dtype} | attrs
        q = b.emit(ops.quantize(x, 0.0625, zero, name="q", **how))
        w = np.ones((16, channels, 3, 3), np.int8)
        how = {"zero_point": zero, "strides": [2, 2], "padding": [1, 2, 0, 1]}
        return b.emit(ops.conv2d(q, w, [5], name="c", **how))

    return module((2, channels, *size), "float32", emit)


@pytest.mark.parametrize("form", FORMS)
def test_images_are_one_word_a_pixel(form: str) -> None:
    x = _floats((2, 3, 5, 21), 0.0625)
    lowered, _ = check(_image(3, (5, 21), **FORMS[form]), x, arch=80, rules=IMAGE_RULES)
    tensor = call_of(lowered, "quantize").layer.outputs[0][1]
    assert (tensor.layout.words, tensor.layout.bits, tensor.fill) == (1, 8, 9)
    assert tensor.layout.halo[:3] == (1, 2, 0)


@pytest.mark.parametrize(
    ("channels", "out", "zero"),
    [(1, U8, 114), (4, U4, 3), (7, S8, 0)],
    ids=["one channel", "four bits in bytes", "two words"],
)
def test_other_images(channels: int, out: IntRange, zero: int) -> None:
    x = _floats((2, channels, 3, 6), 0.0625)
    lowered, _ = check(_image(channels, (3, 6), out, zero), x, arch=80, rules=IMAGE_RULES)
    layout = call_of(lowered, "quantize").layer.outputs[0][1].layout
    assert (layout.bits, layout.words) == (8, -(-channels // 4))


def test_planted_fault() -> None:
    x = _floats((2, 3, 5, 21), 0.0625)
    with pytest.raises(EmulationError, match="out-of-bounds"):
        check(
            _image(3, (5, 21)), x, arch=80, rules=IMAGE_RULES,
            change=lambda text: text.replace("< 210)", "< 256)"),
        )  # fmt: skip


@needs_sass
@pytest.mark.parametrize("form", FORMS)
def test_division_is_rounded_and_no_multiplication_is_fused(form: str) -> None:
    text = sass(_image(3, (5, 21), **FORMS[form]), "quantize", arch=80, rules=IMAGE_RULES)
    # The exact quotient takes Newton steps and a call for the rare cases.
    assert ("MUFU.RCP" in text, "FFMA" in text) == (form != "reciprocal",) * 2
    assert "FRND" in text
    assert "LDL" not in text and "STL" not in text
