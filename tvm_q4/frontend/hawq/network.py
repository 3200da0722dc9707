"""A HAWQ network as a document of the recipe format, operator by operator.

Order and rounding are those of ``hawq-v3.md`` section 2. A ReLU is the lower bound of the clamp
after it: multipliers are not negative, so rounding is monotonic and keeps 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_q4.frontend.hawq.architecture import (
    INPUT_ACT,
    OUTPUT,
    OUTPUT_ACT,
    STREAM_ACT,
    Architecture,
    Conv,
    Unit,
)
from tvm_q4.frontend.hawq.arithmetic import (
    Ratio,
    accumulator_scale,
    fold_saturated,
    int32_bias,
    integer_layer,
    ratio_of,
)
from tvm_q4.frontend.hawq.bits import Bits, activation_bits
from tvm_q4.frontend.hawq.checkpoint import Arrays
from tvm_q4.ops import pool_output
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange

_FLAT = "quant_act_output.flat"
_ONE = np.ones(1, np.float32)
_ZERO = np.array(0, np.int32)


@dataclass(frozen=True)
class Value:
    """An integer tensor: its name, scale, range, height and width."""

    name: str
    scale: np.float32
    range: IntRange
    size: tuple[int, int]


class Network:
    """Writes the operators of one checkpoint.

    Parameters
    ----------
    arch : Architecture
    arrays : dict of str to ndarray
        The checkpoint's, with integers.
    bits : dict of str to LayerBits
    rounding : str
        As for `load_hawq_model`.
    where : str
        The file, for errors.
    """

    def __init__(
        self, arch: Architecture, arrays: Arrays, bits: Bits, rounding: str, where: str
    ) -> None:
        self.arch, self.arrays, self.bits, self.where = arch, arrays, bits, where
        self.act_bits = activation_bits(bits, arch)
        self.rounding = rounding
        # TVM's qnn.add rounds half up whatever the model asks for.
        self.add_rounding = "half_even" if rounding == "half_even" else "half_up"
        self.ops: list[dict[str, Any]] = []
        self.constants: Arrays = {}

    def document(self, image_size: tuple[int, int]) -> tuple[dict[str, Any], Arrays]:
        """Document without its ``meta``, and its arrays, for images of that height and width."""
        stream = self._stem(self._input(image_size))
        for unit in self.arch.residual_units():
            stream = self._unit(unit, stream)
        self._head(stream)
        image = {"name": "image", "shape": [3, *image_size], "dtype": "float32"}
        return {"input": image, "output": "logits", "ops": self.ops}, self.constants

    def _emit(self, op: str, name: str, inputs: list[str], arrays: Arrays, **attrs: Any) -> None:
        refs = {key: f"{name}.{key}" for key in arrays}
        self.constants |= {refs[key]: array for key, array in arrays.items()}
        self.ops.append({"op": op, "name": name, "inputs": inputs, **refs, **attrs})

    def _scale(self, act: str) -> np.float32:
        return np.float32(self.arrays[f"{act}.act_scaling_factor"].item())

    def _input(self, size: tuple[int, int]) -> Value:
        scale = self._scale(INPUT_ACT)
        arrays: Arrays = {"scale": np.array(scale, np.float64), "zero_point": _ZERO}
        self._emit(
            "quantize", INPUT_ACT, ["image"], arrays, qmin=-128, qmax=127, dtype="int8", axis=1,
            form="reciprocal", numerator=1.0, denominator=1.0,
        )  # fmt: skip
        return Value(INPUT_ACT, scale, IntRange(-128, 127), size)

    def _stem(self, x: Value) -> Value:
        """Convolution, 3x3 max-pool and the first stream, in PyTorch's order."""
        conv = self.arch.first
        scale = self._scale(STREAM_ACT)
        ratio, size = self._conv(conv, x, scale, self.rounding)
        kernel, strides, padding = [3, 3], [2, 2], [1, 1, 1, 1]
        self._emit(
            "max_pool2d", "pool", [conv.name], {}, pool_size=kernel, strides=strides,
            padding=padding, dilation=[1, 1], ceil_mode=False, dtype="int32",
        )  # fmt: skip
        pooled = _size("pool", size, kernel, strides, padding)
        clamped = self.rounding == "half_even"
        limits = IntRange(0, 2**15 - 1 if clamped else INT32_MAX)
        return self._requantize("pool", ratio, Value(STREAM_ACT, scale, limits, pooled))

    def _conv(
        self, conv: Conv, x: Value, out: np.float32, rounding: str
    ) -> tuple[Ratio, tuple[int, int]]:
        """Emit a convolution; ratio of its accumulators to the scale `out`, height and width."""
        layer = integer_layer(conv.name, self.arrays, self.bits, self.where)
        ratio = ratio_of(accumulator_scale(x.scale, layer.scale), out, conv.name)
        layer, ratio = fold_saturated(layer, ratio, x.range, rounding)
        strides, padding = [conv.stride] * 2, [conv.padding] * 4
        size = _size(conv.name, x.size, [conv.kernel] * 2, strides, padding)
        arrays: Arrays = {"weight": layer.weight, "bias": layer.bias.astype(np.int32)}
        self._emit(
            "conv2d", conv.name, [x.name], arrays, strides=strides, padding=padding,
            dilation=[1, 1], groups=1, zero_point=0, weight_bits=layer.bits,
        )  # fmt: skip
        return ratio, size

    def _requantize(self, source: str, ratio: Ratio, made: Value) -> Value:
        arrays = {"multiplier": ratio.multiplier, "shift": ratio.shift}
        lo, hi, dtype = made.range.lo, made.range.hi, made.range.dtype
        self._emit(
            "requantize", made.name, [source], arrays, lo=lo, hi=hi, dtype=dtype, zero_point=0,
            in_zero_point=0, rounding=self.rounding,
        )  # fmt: skip
        return made

    def _activation(self, act: str, source: str, ratio: Ratio, size: tuple[int, int]) -> Value:
        """A quantizer after a ReLU: 0..15, or 0..127 as 8 bits are signed."""
        limits = IntRange(0, 15 if self.act_bits[act] == 4 else 127)
        return self._requantize(source, ratio, Value(act, self._scale(act), limits, size))

    def _narrowed(self, act: str, stream: Value) -> Value:
        """A quantizer of the residual stream: the weight's scale is 1 there."""
        scale = accumulator_scale(stream.scale, _ONE)
        ratio = ratio_of(scale, self._scale(act), act)
        return self._activation(act, stream.name, ratio, stream.size)

    def _unit(self, unit: Unit, stream: Value) -> Value:
        name = f"{unit.prefix}.{STREAM_ACT}"
        scale = self._scale(name)
        first = x = self._narrowed(unit.convs[0].reads, stream)
        for conv, following in zip(unit.convs, unit.convs[1:], strict=False):
            act = following.reads
            ratio, size = self._conv(conv, x, self._scale(act), self.rounding)
            x = self._activation(act, conv.name, ratio, size)
        main, size = self._conv(unit.convs[-1], x, scale, self.add_rounding)
        if unit.identity is None:
            skip, source = ratio_of(stream.scale.reshape(1), scale, name), stream.name
        else:
            skip, _ = self._conv(unit.identity, first, scale, self.add_rounding)
            source = unit.identity.name
        arrays = {
            "lhs_multiplier": main.multiplier,
            "lhs_shift": main.shift,
            "rhs_multiplier": skip.multiplier,
            "rhs_shift": skip.shift,
        }
        limits = IntRange(0, INT32_MAX)
        self._emit(
            "add", name, [unit.convs[-1].name, source], arrays, form="two_sided", lo=limits.lo,
            hi=limits.hi, dtype="int32", lhs_zero_point=0, rhs_zero_point=0, zero_point=0,
            rounding=self.add_rounding,
        )  # fmt: skip
        return Value(name, scale, limits, size)

    def _head(self, stream: Value) -> None:
        """Average pool that truncates, the last quantizer, linear layer and float logits."""
        self._emit(
            "avg_pool2d", "final_pool", [stream.name], {}, pool_size=list(stream.size),
            strides=[1, 1], padding=[0] * 4, dilation=[1, 1], ceil_mode=False,
            count_include_pad=True, rounding="truncate", zero_point=0, dtype=stream.range.dtype,
        )  # fmt: skip
        x = self._narrowed(OUTPUT_ACT, Value("final_pool", stream.scale, stream.range, (1, 1)))
        layer = integer_layer(OUTPUT, self.arrays, self.bits, self.where)
        self._emit("reshape", _FLAT, [x.name], {}, shape=[self.arch.features])
        arrays = {"weight": layer.weight, "bias": int32_bias(layer)}
        self._emit("dense", OUTPUT, [_FLAT], arrays, zero_point=0, weight_bits=layer.bits)
        scale = accumulator_scale(x.scale, layer.scale).astype(np.float64)
        self._emit(
            "dequantize", "logits", [OUTPUT],
            {"scale": scale, "zero_point": _ZERO},
            qmin=INT32_MIN, qmax=INT32_MAX, dtype="float32", axis=1, form="multiply",
        )  # fmt: skip


def _size(
    where: str, size: tuple[int, int], pool_size: list[int], strides: list[int], padding: list[int]
) -> tuple[int, int]:
    return pool_output(size, pool_size, strides, padding, [1, 1], where=where)
