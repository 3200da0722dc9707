"""``quantized_decomposed`` quantize and dequantize nodes, as PT2E leaves them.

Bits are read from ``quant_min`` and ``quant_max``; the dtype is only the container. Equal nodes on
one tensor (PT2E writes a dequantize for every reader) become one.
"""

from __future__ import annotations

import math

import numpy as np

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.frontend.common import quantization
from tvm_q4.frontend.common.quantization import QuantParams
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.torch_ops.registry import NodeView, converts

_SPACE = "quantized_decomposed"


def _numbers(node: NodeView, name: str) -> np.ndarray:
    """Argument `name`, a number or a constant tensor, as float64 [C]."""
    value = node[name]
    if isinstance(value, Value):
        if not isinstance(value.expr, GenericConst):
            raise node.unsupported(
                f"{name} is computed at run time; only static (calibrated) scales are supported"
            )
        value = ops.const_array(value.expr)
    return np.ravel(np.asarray(value, dtype="float64"))


def _integers(node: NodeView, name: str) -> tuple[int, ...]:
    values = _numbers(node, name)
    if any(v != math.floor(v) for v in values):
        raise node.unsupported(f"{name} {values[0]} is not an integer")
    return tuple(int(v) for v in values)


def _params(node: NodeView, x: Value, *, per_channel: bool) -> QuantParams:
    names = ("scales", "zero_points") if per_channel else ("scale", "zero_point")
    scale = tuple(float(s) for s in _numbers(node, names[0]))
    axis = int(node["axis"]) % len(x.shape) if per_channel else 1
    zero_point = (0,) * len(scale) if node[names[1]] is None else _integers(node, names[1])
    p = QuantParams(
        scale, zero_point, _integers(node, "quant_min")[0], _integers(node, "quant_max")[0],
        str(node["dtype"]).removeprefix("torch."), axis, per_channel,
    )  # fmt: skip
    p.check(node, x.shape)
    return p


def _quantize(imp: ImporterFace, node: NodeView, *, per_channel: bool) -> Value:
    x = node.tensor("input")
    return quantization.quantize(imp, node, x, _params(node, x, per_channel=per_channel))


def _dequantize(imp: ImporterFace, node: NodeView, *, per_channel: bool) -> Value:
    x = node.tensor("input")
    p = _params(node, x, per_channel=per_channel)
    if str(node.args.get("out_dtype") or "float32").removeprefix("torch.") != "float32":
        raise node.unsupported(f"out_dtype {node['out_dtype']} is not supported, only float32")
    return quantization.dequantize(imp, node, x, p)


_TENSOR = ("default", "tensor", "tensor2")


@converts(*(f"{_SPACE}.quantize_per_tensor.{o}" for o in _TENSOR))
def quantize_per_tensor(imp: ImporterFace, node: NodeView) -> Value:
    """``q4.quantize`` with one scale; form ``reciprocal``, as torch computes it."""
    return _quantize(imp, node, per_channel=False)


@converts(f"{_SPACE}.quantize_per_channel.default")
def quantize_per_channel(imp: ImporterFace, node: NodeView) -> Value:
    """``q4.quantize`` with one scale for each index of an axis."""
    return _quantize(imp, node, per_channel=True)


@converts(*(f"{_SPACE}.dequantize_per_tensor.{o}" for o in _TENSOR))
def dequantize_per_tensor(imp: ImporterFace, node: NodeView) -> Value:
    """``q4.dequantize`` with one scale."""
    return _dequantize(imp, node, per_channel=False)


@converts(f"{_SPACE}.dequantize_per_channel.default")
def dequantize_per_channel(imp: ImporterFace, node: NodeView) -> Value:
    """``q4.dequantize`` with one scale for each index of an axis."""
    return _dequantize(imp, node, per_channel=True)
