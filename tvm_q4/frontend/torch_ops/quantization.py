"""``quantized_decomposed`` quantize and dequantize nodes, as PT2E leaves them.

Bits are read from ``quant_min`` and ``quant_max``; the dtype is only the container. Equal nodes on
one tensor (PT2E writes a dequantize for every reader) become one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.frontend.torch_ops.registry import ImporterFace, NodeView, Value, converts

_SPACE = "quantized_decomposed"
_CONTAINERS = ("int8", "uint8", "int16", "int32")


@dataclass(frozen=True)
class _Params:
    """Checked quantization parameters of one node."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    qmin: int
    qmax: int
    dtype: str
    axis: int
    per_channel: bool

    def arrays(self) -> tuple[Any, Any]:
        """Scale and zero point: scalars, or float64 and int32 arrays [C]."""
        if not self.per_channel:
            return self.scale[0], self.zero_point[0]
        return np.array(self.scale, "float64"), np.array(self.zero_point, "int32")


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


def _check(node: NodeView, p: _Params) -> None:
    if p.dtype not in _CONTAINERS:
        raise node.unsupported(f"dtype {p.dtype} is not supported, only {', '.join(_CONTAINERS)}")
    info = np.iinfo(p.dtype)
    if not info.min <= p.qmin < p.qmax <= info.max:
        raise node.unsupported(f"range {p.qmin}..{p.qmax} does not fit {p.dtype}")
    bad = [s for s in p.scale if not (math.isfinite(s) and s > 0)]
    if bad:
        raise node.unsupported(
            f"scale {bad[0]} is not positive and finite; calibrate the model again"
        )
    outside = [z for z in p.zero_point if not p.qmin <= z <= p.qmax]
    if outside:
        raise node.unsupported(f"zero point {outside[0]} is outside {p.qmin}..{p.qmax}")


def _params(node: NodeView, x: Value, *, per_channel: bool) -> _Params:
    names = ("scales", "zero_points") if per_channel else ("scale", "zero_point")
    scale = tuple(float(s) for s in _numbers(node, names[0]))
    axis = int(node["axis"]) % len(x.shape) if per_channel else 1
    zero_point = (0,) * len(scale) if node[names[1]] is None else _integers(node, names[1])
    p = _Params(
        scale, zero_point, _integers(node, "quant_min")[0], _integers(node, "quant_max")[0],
        str(node["dtype"]).removeprefix("torch."), axis, per_channel,
    )  # fmt: skip
    _check(node, p)
    count = x.shape[axis] if per_channel else 1
    if len(p.scale) != count or len(p.zero_point) != count:
        raise node.unsupported(
            f"{len(p.scale)} scales and {len(p.zero_point)} zero points for {count} channels"
        )
    return p


def _quantize(imp: ImporterFace, node: NodeView, *, per_channel: bool) -> Value:
    x = node.tensor("input")
    if x.dtype != "float32":
        raise node.unsupported(f"the input has dtype {x.dtype}, expected float32")
    p = _params(node, x, per_channel=per_channel)

    def make() -> Value:
        name = imp.quantized_name(node.tensor_role or x.base)
        call = ops.quantize(
            x.expr, *p.arrays(), name=name, qmin=p.qmin, qmax=p.qmax, dtype=p.dtype, axis=p.axis
        )
        return Value(imp.emit(call, name), name, x.constant)

    return imp.shared(("quantize", x, p), make)


def _dequantize(imp: ImporterFace, node: NodeView, *, per_channel: bool) -> Value:
    x = node.tensor("input")
    p = _params(node, x, per_channel=per_channel)
    if x.dtype != p.dtype:
        raise node.unsupported(f"the input has dtype {x.dtype}, the node says {p.dtype}")
    if str(node.args.get("out_dtype") or "float32").removeprefix("torch.") != "float32":
        raise node.unsupported(f"out_dtype {node['out_dtype']} is not supported, only float32")

    def make() -> Value:
        base = node.tensor_role or x.base
        name = imp.unique(base, ".dq")
        call = ops.dequantize(x.expr, *p.arrays(), name=name, qmin=p.qmin, qmax=p.qmax, axis=p.axis)
        return Value(imp.emit(call, name), base, x.constant)

    return imp.shared(("dequantize", x, p), make)


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
