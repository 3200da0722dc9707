"""What each operator of NVIDIA's form of a recipe becomes."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.recipe_nvidia_state import FULL, Arrays, Entry, Translation
from tvm_q4.frontend.recipe_schema import is_int
from tvm_q4.ops import pool_output
from tvm_q4.quant import INT32_MAX, IntRange

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_QUANT_FORMULA = re.compile(
    r"clamp\(rint\(\(\(p/255 - mean\)/std\) \* (?P<num>\d+(?:\.\d+)?) / (?P<den>\d+(?:\.\d+)?)\), "
    r"(?P<lo>-?\d+), (?P<hi>-?\d+)\) in float32, rint = ties to even"
)
_AWAY = "nearest, ties away from zero"
_POOL_FORMULA = re.compile(
    r"floor\(\(sum over (?P<n>\d+) positions \+ (?P<half>\d+)\) / (?P<n2>\d+)\)"
)


def _input_quant(t: Translation, op: Entry) -> None:
    match = _QUANT_FORMULA.fullmatch(str(op["formula"]))
    if match is None:
        raise UnsupportedError(f"{t.where}: formula {op['formula']!r} is not the documented one")
    if t.input:
        raise InputError(f"{t.where}: a recipe has one input")
    if [op["mean"], op["std"]] == [_MEAN, _STD]:
        t.meta["transform"] = "imagenet"
    num, den = float(match["num"]), float(match["den"])
    lo, hi = int(match["lo"]), int(match["hi"])
    if not num or not den or op["real_step"] != den / num:
        raise InputError(
            f"{t.where}: real_step {op['real_step']!r} is not {match['den']}/{match['num']}"
        )
    dtype = t.type(op["out_type"]).dtype
    t.input = {"name": "image", "shape": [3, *t.image_size], "dtype": "float32"}
    arrays = {"scale": np.float64(den / num).reshape(()), "zero_point": np.int32(0).reshape(())}
    t.emit(
        "quantize", t.made(op, t.image_size), ["image"], arrays, qmin=lo, qmax=hi,
        dtype=dtype, axis=1, form="mul_div", numerator=num, denominator=den,
    )  # fmt: skip


def _layer(t: Translation, op: Entry, rank: int) -> tuple[str, Arrays]:
    """Layer name, weight and bias of a convolution or linear layer, under that name."""
    weight = t.integers(op["weight"], op["weight_type"])
    bias = t.integers(op["bias"], op["bias_type"])
    if weight.dtype != np.int8 or weight.ndim != rank:
        msg = (
            f"{t.where}: weight is {weight.dtype} {list(weight.shape)}, expected int8 of rank "
            f"{rank}"
        )
        raise InputError(msg)
    if not op["weight"].endswith(".weight") or t.type(op["out_type"]) != IntRange(*FULL):
        raise UnsupportedError(f"{t.where}: expected an s32 result and a weight named LAYER.weight")
    name = op["weight"].removesuffix(".weight")
    t.names[op["output"]] = name
    t.aliases[op["output"]] = name
    return name, {"weight": weight, "bias": bias.astype(np.int32)}


def _conv2d(t: Translation, op: Entry) -> None:
    name, arrays = _layer(t, op, 4)
    weight, stride, pad = arrays["weight"], _pair(t, op, "stride"), _pair(t, op, "padding")
    kernel, dilation = _pair(t, op, "kernel"), _pair(t, op, "dilation")
    stated = [op["out_channels"], op["in_channels"], *kernel]
    if list(weight.shape) != stated or op["groups"] != 1 or op["pad_value"] != 0:
        msg = (
            f"{t.where}: weight is {list(weight.shape)}, stated are {stated}, "
            f"groups {op['groups']!r}, pad_value {op['pad_value']!r}; expected agreement, 1 and 0"
        )
        raise InputError(msg)
    source, padding = t.tensor(op["input"]), pad + pad
    t.spatial[op["output"]] = pool_output(
        t.size(op["input"]), kernel, stride, padding, dilation, where=t.where
    )
    t.emit(
        "conv2d", name, [source], arrays, strides=stride, padding=padding, dilation=dilation,
        groups=1, zero_point=0, weight_bits=t.type(op["weight_type"]).bits,
    )  # fmt: skip


def _linear(t: Translation, op: Entry) -> None:
    name, arrays = _layer(t, op, 2)
    stated = [op["out_features"], op["in_features"]]
    if list(arrays["weight"].shape) != stated:
        msg = f"{t.where}: weight is {list(arrays['weight'].shape)}, stated are {stated}"
        raise InputError(msg)
    source = t.tensor(op["input"])
    if op["input"] in t.spatial:
        flat = f"{op['input']}:flat"
        t.emit("reshape", flat, [source], {}, shape=[stated[1]])
        source = flat
    bits = t.type(op["weight_type"]).bits
    t.emit("dense", name, [source], arrays, zero_point=0, weight_bits=bits)


def _relu(t: Translation, op: Entry) -> None:
    source, result = t.type(op["in_type"]), t.type(op["out_type"])
    if result != IntRange(0, source.hi):
        raise UnsupportedError(f"{t.where}: out_type {op['out_type']!r} is not 0..{source.hi}")
    t.relu_of[op["output"]] = op["input"]
    if op["input"] in t.spatial:
        t.spatial[op["output"]] = t.spatial[op["input"]]


def _requant(t: Translation, op: Entry) -> None:
    mul, shift, result = t.integers(op["mul"], "u16"), op["shift"], t.type(op["out_type"])
    stored = op["mul"].removesuffix("_mul") + "_shift"
    if not is_int(shift) or not 0 <= shift <= 31:
        raise InputError(f"{t.where}: shift is {shift!r}, expected 0..31")
    if stored in t.arrays and t.integers(stored, "s32").ravel().tolist() != [shift]:
        raise InputError(
            f"{t.where}: shift is {shift}, but array {stored!r} says {t.arrays[stored]}"
        )
    if op.get("rounding") != _AWAY or op["axis"] != "channel":
        msg = (
            f"{t.where}: rounding {op.get('rounding')!r} on axis {op['axis']!r}; expected "
            f"{_AWAY!r} a channel"
        )
        raise UnsupportedError(msg)
    lo, hi = _clamp(t, op, result)
    source = op["input"]
    if source in t.relu_of:
        source, lo = t.relu_of[source], max(lo, 0)  # the clamp is the ReLU
    arrays = {"multiplier": mul.astype(np.int32), "shift": np.full(mul.shape, shift, np.int32)}
    name = t.made(op, t.spatial.get(op["input"]))
    t.emit(
        "requantize", name, [t.tensor(source)], arrays, lo=lo, hi=hi, dtype=result.dtype,
        zero_point=0, in_zero_point=0, rounding="half_away",
    )  # fmt: skip


def _clamp(t: Translation, op: Entry, result: IntRange) -> tuple[int, int]:
    clamp = op["clamp"]
    if clamp is None:
        unclamped = result == IntRange(0, INT32_MAX) and t.type(op["in_type"]).lo >= 0
        return FULL if unclamped else (result.lo, result.hi)
    if not isinstance(clamp, list) or len(clamp) != 2 or not all(is_int(v) for v in clamp):
        raise InputError(f"{t.where}: clamp is {clamp!r}, expected two integers or null")
    if not result.lo <= clamp[0] <= clamp[1] <= result.hi:
        raise InputError(f"{t.where}: clamp {clamp} leaves out_type {op['out_type']!r}")
    return clamp[0], clamp[1]


def _maxpool2d(t: Translation, op: Entry) -> None:
    kernel, stride, pad = (_pair(t, op, k) for k in ("kernel", "stride", "padding"))
    kind = t.type(op["in_type"])
    if op["pad_value"] != kind.lo or op["out_type"] != op["in_type"]:
        msg = (
            f"{t.where}: pad_value {op['pad_value']!r} is not the lowest value of {op['in_type']!r}"
        )
        raise UnsupportedError(msg)
    source = t.tensor(op["input"])
    size = pool_output(t.size(op["input"]), kernel, stride, pad + pad, [1, 1], where=t.where)
    t.emit(
        "max_pool2d", t.made(op, size), [source], {}, pool_size=kernel, strides=stride,
        padding=pad + pad, dilation=[1, 1], ceil_mode=False, dtype=kind.dtype,
    )  # fmt: skip


def _global_avgpool(t: Translation, op: Entry) -> None:
    match = _POOL_FORMULA.fullmatch(str(op["formula"]))
    kernel, size = _pair(t, op, "kernel"), list(t.size(op["input"]))
    n = kernel[0] * kernel[1]
    if match is None or [int(v) for v in match.groups()] != [n, n // 2, n]:
        raise UnsupportedError(
            f"{t.where}: formula {op['formula']!r} is not the nearest mean of {n}"
        )
    if t.default_size and kernel != size:
        msg = (
            f"{t.where}: kernel is {kernel}, its input {size} for an image of "
            f"{t.image_size[0]}x{t.image_size[1]}; give the image size"
        )
        raise InputError(msg)
    if op["out_type"] != op["in_type"] or t.type(op["in_type"]).signed:
        raise UnsupportedError(f"{t.where}: expected one unsigned type for input and output")
    source = t.tensor(op["input"])
    t.emit(
        "avg_pool2d", t.made(op, (1, 1)), [source], {}, pool_size=size, strides=[1, 1],
        padding=[0, 0, 0, 0], dilation=[1, 1], ceil_mode=False, count_include_pad=True,
        rounding="nearest", zero_point=0, dtype=t.type(op["in_type"]).dtype,
    )  # fmt: skip


def _add(t: Translation, op: Entry) -> None:
    if op["in_type"] != "s32" or t.type(op["out_type"]) != IntRange(*FULL):
        raise UnsupportedError(f"{t.where}: expected s32 sides and an s32 sum")
    inputs = [t.tensor(x) for x in op["input"]]
    one, none = np.array([1], np.int32), np.array([0], np.int32)
    arrays = {"lhs_multiplier": one, "lhs_shift": none, "rhs_multiplier": one, "rhs_shift": none}
    t.emit(
        "add", t.made(op, t.spatial.get(op["input"][0])), inputs, arrays, form="accumulator",
        lo=FULL[0], hi=FULL[1], dtype="int32", lhs_zero_point=0, rhs_zero_point=0, zero_point=0,
        rounding="half_away",
    )  # fmt: skip


def _divide(t: Translation, op: Entry) -> None:
    scale = t.array(op["divisor"])
    if (
        scale.dtype.kind != "f"
        or scale.ndim != 1
        or op["axis"] != "class"
        or op["out_type"] != "f32"
    ):
        raise UnsupportedError(f"{t.where}: expected a float divisor for each class and f32")
    arrays = {"scale": scale.astype(np.float64), "zero_point": np.int32(0).reshape(())}
    t.emit(
        "dequantize", t.made(op, None), [t.tensor(op["input"])], arrays, qmin=FULL[0],
        qmax=FULL[1], dtype="float32", axis=1, form="divide",
    )  # fmt: skip


def _pair(t: Translation, op: Entry, key: str) -> list[int]:
    value, least = op[key], 0 if key == "padding" else 1
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(is_int(v) and least <= v <= INT32_MAX for v in value)
    ):
        raise InputError(f"{t.where}: {key} is {value!r}, expected two integers from {least}")
    return list(value)


HANDLERS: dict[str, Callable[[Translation, Entry], None]] = {
    "input_quant": _input_quant,
    "conv2d": _conv2d,
    "linear": _linear,
    "relu": _relu,
    "requant": _requant,
    "maxpool2d": _maxpool2d,
    "global_avgpool": _global_avgpool,
    "add": _add,
    "divide": _divide,
}
