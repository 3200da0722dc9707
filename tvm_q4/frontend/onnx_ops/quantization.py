"""QuantizeLinear and DequantizeLinear; Clip between them (QCDQ), whose bounds are the bits.

ONNX divides by the scale (form ``divide``), rounds half to even and saturates; the zero point's
type is the result's.
"""

from __future__ import annotations

import numpy as np
import onnx
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.frontend.common import quantization
from tvm_q4.frontend.common.quantization import QuantParams
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.onnx_file import NARROW, type_name
from tvm_q4.frontend.onnx_ops.registry import MICROSOFT, NodeView, axis_of, converts, limits
from tvm_q4.quant import IntRange

_DOMAINS = ("", MICROSOFT)
_FLOAT = (onnx.TensorProto.UNDEFINED, onnx.TensorProto.FLOAT)


def params(
    node: NodeView, x: Value, scale_at: int, zero_at: int, bounds: tuple[str, int, int], axis: int
) -> QuantParams:
    """Scale and zero point of the inputs `scale_at` and `zero_at` for the tensor `x`.

    `bounds` are dtype, qmin and qmax of the integers; `axis` is that of a scale per channel.
    """
    scale, zero = node.array(scale_at), node.array(zero_at)
    if scale is None:
        raise node.unsupported(f"input {scale_at}, the scale, is missing")
    if scale.ndim > 1 or scale.dtype != np.float32:
        found = f"{scale.dtype} {list(scale.shape)}"
        raise node.unsupported(
            f"the scale is {found}; only one float32 for the tensor or for each channel is "
            "supported (blocked quantization has no integer form)"
        )
    if zero is None:
        zero = np.zeros(scale.shape, "int32")
    if zero.size != scale.size or zero.dtype.kind not in "iu":
        found = f"{zero.dtype} {list(zero.shape)}"
        raise node.unsupported(f"the zero point is {found} beside {scale.size} scale(s)")
    per_channel = scale.size > 1
    if per_channel and not x.constant:
        raise node.unsupported(
            f"activation '{x.base}' has {scale.size} scales; only weights can have a scale for "
            "each channel"
        )
    axis = axis_of(node, axis, len(x.shape)) if per_channel else 1
    p = QuantParams(
        tuple(float(s) for s in scale.ravel()), tuple(int(z) for z in zero.ravel()), bounds[1],
        bounds[2], bounds[0], axis, per_channel,
    )  # fmt: skip
    p.check(node, x.shape)
    return p


def result_bounds(node: NodeView, zero_at: int, default: str = "uint8") -> tuple[str, int, int]:
    """Container and range that the zero point's type gives, else `default`."""
    zero = node.optional(zero_at)
    if zero is None:
        info = np.iinfo(default)
        return default, int(info.min), int(info.max)
    if zero.dtype not in ("int8", "uint8", "int16", "uint16"):
        raise node.unsupported(f"the zero point has type {zero.dtype}, which no quantizer here has")
    return zero.dtype, *limits(zero)


def _declared_type(node: NodeView) -> str:
    """Result type of a quantizer without a zero point: the attribute's, else uint8."""
    declared = node.integer("output_dtype", 0)
    if declared == onnx.TensorProto.UNDEFINED:
        return "uint8"
    return type_name(declared)


def _check_attributes(node: NodeView) -> None:
    block = node.integer("block_size", 0)
    if block:
        raise node.unsupported(
            f"quantization in blocks of {block} has no integer form; quantize by tensor or channel"
        )
    if node.integer("precision", 0) not in _FLOAT:
        kind = type_name(node.integer("precision", 0))
        raise node.unsupported(f"precision {kind} is not supported, only FLOAT")


@converts("QuantizeLinear", domain=_DOMAINS)
def quantize_linear(imp: ImporterFace, node: NodeView) -> Value:
    """``q4.quantize`` with form ``divide``; a Clip that follows gives its range."""
    _check_attributes(node)
    declared = _declared_type(node)
    if node.optional(2) is None and declared in NARROW:
        dtype, limit = NARROW[declared]
        bounds = (dtype, limit.lo, limit.hi)
    else:
        default = declared.lower()
        if default not in ("int8", "uint8", "int16", "uint16"):
            raise node.unsupported(f"the result has type {declared}, which is not supported")
        bounds = result_bounds(node, 2, default)
    if node.clip is not None:
        low, high = max(bounds[1], node.clip[0]), min(bounds[2], node.clip[1])
        bounds = (bounds[0], low, high)
    x = node.tensor(0)
    p = params(node, x, 1, 2, bounds, node.integer("axis", 1))
    return quantization.quantize(imp, node, x, p, form="divide")


@converts("DequantizeLinear", domain=_DOMAINS)
def dequantize_linear(imp: ImporterFace, node: NodeView) -> Value:
    """``q4.dequantize``."""
    _check_attributes(node)
    if node.integer("output_dtype", 0) not in _FLOAT:
        kind = type_name(node.integer("output_dtype", 0))
        raise node.unsupported(f"the result has type {kind}; only FLOAT is supported")
    x = node.tensor(0)
    if x.dtype not in quantization.CONTAINERS:
        raise node.unsupported(f"the input has type {x.dtype}, which is not supported")
    p = params(node, x, 1, 2, (x.dtype, *limits(x)), node.integer("axis", 1))
    return quantization.dequantize(imp, node, x, p)


def clip_integers(node: NodeView, x: Value, low: int | None, high: int | None) -> Value:
    """Clip of quantized values: the bounds are the range of their quantizer.

    A quantizer whose only reader is the Clip has taken them over already; constants are clipped.
    """
    lo, hi = limits(x)
    low, high = lo if low is None else max(low, lo), hi if high is None else min(high, hi)
    if low >= high:
        raise node.unsupported(f"the bounds {low}..{high} leave less than two values")
    if isinstance(x.expr, GenericConst):
        clipped = np.clip(ops.const_array(x.expr), low, high)
        return Value(relax.const(clipped, x.dtype), x.base, True, IntRange(low, high))
    if (low, high) != (lo, hi):
        raise node.unsupported(
            f"bounds {low}..{high} on integers in {lo}..{hi}; a Clip of integers must directly "
            "follow its QuantizeLinear and be its only reader"
        )
    return x
