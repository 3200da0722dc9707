"""A layer as TVM takes it: its own int8 convolution in NCHWc, and the same integer epilogue.

The computation is that of our kernel, number for number: uint8 x int8 into int32, bias, a 32 x 32
bit product with a rounding shift for each channel, clamp. The layout is what TVM's VNNI intrinsic
needs: 16 channels innermost, weights packed for it before. Padding lies in the input already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import te, topi

from tvm_q4._compat import tirx
from tvm_q4.schedules.layer import Layer, Op
from tvm_q4.tune.case import Case, reference_values

_LANES = 16
_DEPTH = 4
"""Products that a lane of the dot-product instruction sums up."""


def check(layer: Layer) -> None:
    """Refuse a layer that is no plain convolution of unsigned data with one requantization."""
    anchor, epilogue = layer.ops[0], [op.kind for op in layer.ops[1:]]
    plain = anchor.kind == "conv2d" and epilogue == ["requantize"] and layer.data.dtype == "uint8"
    attrs = anchor.attrs
    channels = anchor.params["weight"].shape[:2] if plain else (1,)
    whole = all(c % _LANES == 0 for c in channels)
    if not (plain and whole and attrs["groups"] == 1 and attrs["dilation"] == [1, 1]):
        raise SystemExit(f"error: layer {layer.name!r} has no counterpart: take another layer")


def workload(layer: Layer) -> tirx.PrimFunc:
    """The layer's computation, not scheduled."""
    conv, requantize = layer.ops[0], layer.ops[1]
    n, c, h, w = layer.data.shape
    top, left, bottom, right = conv.attrs["padding"]
    o, _, kh, kw = conv.params["weight"].shape
    shape = (n, c // _LANES, h + top + bottom, w + left + right, _LANES)
    data = te.placeholder(shape, "uint8", "data")
    packed = (o // _LANES, c // _LANES, kh, kw, _LANES // _DEPTH, _LANES, _DEPTH)
    weight = te.placeholder(packed, "int8", "weight")
    channel = (o // _LANES, _LANES)
    names = ("bias", "multiplier", "shift")
    bias, multiplier, shift = (te.placeholder(channel, "int32", name) for name in names)
    stride = tuple(conv.attrs["strides"])
    acc = topi.nn.conv2d_NCHWc_int8(data, weight, stride, 0, 1, "NCHW16c", "NCHW16c")
    lo, hi = requantize.attrs["lo"], requantize.attrs["hi"]

    def epilogue(n: Any, o: Any, y: Any, x: Any, c: Any) -> Any:
        bits = shift[o, c].astype("int64")
        value = (acc[n, o, y, x, c] + bias[o, c]).astype("int64")
        product = value * multiplier[o, c].astype("int64")
        rounded = (product + (_long(1) << (bits - _long(1)))) >> bits
        shifted = rounded + _long(requantize.attrs["zero_point"])
        return tirx.max(tirx.min(shifted, _long(hi)), _long(lo)).astype(requantize.dtype)

    out = te.compute(acc.shape, epilogue, "out")
    return te.create_prim_func([data, weight, bias, multiplier, shift, out])


def _long(value: int) -> Any:
    return tirx.const(value, "int64")


def workload_case(fused: tvm.IRModule, layer: Layer, seed: int) -> Case:
    """Inputs of `workload` and what the reference executor makes of them."""
    conv, requantize = layer.ops[0], layer.ops[1]
    (x,), (y,) = reference_values(fused, layer, np.random.default_rng(seed))
    top, left, bottom, right = conv.attrs["padding"]
    pads = ((0, 0), (0, 0), (top, bottom), (left, right))
    padded = np.pad(x, pads, constant_values=conv.attrs["zero_point"])
    inputs = [_blocked(padded), _pack(conv.params["weight"]), *_channel_inputs(conv, requantize)]
    expected = _blocked(y)
    return Case(inputs, [expected], [np.full(expected.shape, -1, np.int8).view(expected.dtype)])


def _channel_inputs(conv: Op, requantize: Op) -> list[NDArray]:
    """Bias (that of data without its zero point), multiplier, shift: [blocks, 16]."""
    weight = conv.params["weight"].astype(np.int64)
    sums = weight.reshape(weight.shape[0], -1).sum(axis=1)
    bias = conv.params["bias"] - (conv.attrs["zero_point"] * sums).astype(np.int32)
    bias = bias - requantize.attrs["in_zero_point"]
    arrays = (bias, requantize.params["multiplier"], requantize.params["shift"])
    out = weight.shape[0]
    return [
        np.ascontiguousarray(np.broadcast_to(a, out).astype(np.int32).reshape(-1, _LANES))
        for a in arrays
    ]


def _blocked(values: NDArray) -> NDArray:
    """NCHW as NCHW16c."""
    n, c, h, w = values.shape
    blocks = values.reshape(n, c // _LANES, _LANES, h, w)
    return np.ascontiguousarray(blocks.transpose(0, 1, 3, 4, 2))


def _pack(weight: NDArray) -> NDArray:
    """OIHW as OIHW4i16o4i."""
    o, i, kh, kw = weight.shape
    shape = (o // _LANES, _LANES, i // _LANES, _LANES // _DEPTH, _DEPTH, kh, kw)
    blocks = weight.astype(np.int8).reshape(shape)
    return np.ascontiguousarray(blocks.transpose(0, 2, 5, 6, 3, 1, 4))
