"""QONNX's ``Quant``: quantize and dequantize in one operator, of any bit width.

The value is ``(clamp(round(x / scale + zero_point), lo, hi) - zero_point) * scale`` (Pappalardo et
al., "QONNX: Representing Arbitrary-Precision Quantized Neural Networks", 2022, section 3). With
an odd zero point, ties round to the other side than ONNX's QuantizeLinear.
"""

from __future__ import annotations

import numpy as np

from tvm_q4.frontend.common import quantization
from tvm_q4.frontend.common.quantization import QuantParams
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.onnx_ops.elementwise import floats
from tvm_q4.frontend.onnx_ops.registry import QONNX, NodeView, converts
from tvm_q4.quant import IntRange


def _range(node: NodeView) -> IntRange:
    """Range that bit width, signedness and narrowness give."""
    array = node.array(3)
    bits = 0.0 if array is None or array.size != 1 else float(array.item())
    if bits != int(bits) or not 2 <= bits <= 32:
        raise node.unsupported(f"bit width {bits} is not an integer from 2 to 32")
    signed, narrow = bool(node.integer("signed", 1)), bool(node.integer("narrow", 0))
    if signed:
        top = 2 ** (int(bits) - 1) - 1
        return IntRange(-top - (not narrow), top)
    return IntRange(0, 2 ** int(bits) - 1 - narrow)


def _scales(node: NodeView, x: Value) -> tuple[list[float], list[int], int]:
    """Scales, zero points and the axis along which they differ."""
    scale, zero = node.array(1), node.array(2)
    if scale is None or zero is None or scale.dtype != np.float32:
        raise node.unsupported("scale and zero point must be float32 constants")
    if (zero != np.rint(zero)).any():
        raise node.unsupported(f"zero point {zero.ravel()[0]} is not an integer")
    sizes = [d for d in scale.shape if d != 1]
    if len(sizes) > 1 or zero.size not in (1, scale.size):
        raise node.unsupported(
            f"scale {list(scale.shape)} and zero point {list(zero.shape)}; only one for the tensor "
            "or for each channel is supported"
        )
    at = [i for i, d in enumerate(scale.shape) if d != 1]
    axis = at[0] + len(x.shape) - scale.ndim if at else 1
    if axis < 0:
        raise node.unsupported(f"scale {list(scale.shape)} does not fit a tensor of {x.shape}")
    if sizes and not x.constant:
        raise node.unsupported(
            f"activation '{x.base}' has {scale.size} scales; only weights can have a scale for "
            "each channel"
        )
    zeros = np.broadcast_to(zero.ravel(), scale.size)
    return [float(s) for s in scale.ravel()], [int(z) for z in zeros], axis


@converts("Quant", "IntQuant", domain=QONNX)
def quant(imp: ImporterFace, node: NodeView) -> Value:
    """``q4.quantize`` and ``q4.dequantize``."""
    mode = node.text("rounding_mode", "ROUND").upper()
    if mode not in ("ROUND", "HALF_EVEN"):
        raise node.unsupported(f"rounding mode {mode} is not supported, only ROUND (half to even)")
    x, bounds = floats(node, 0), _range(node)
    scale, zero, axis = _scales(node, x)
    dtype = bounds.dtype
    p = QuantParams(tuple(scale), tuple(zero), bounds.lo, bounds.hi, dtype, axis, len(scale) > 1)
    p.check(node, x.shape)
    q = quantization.quantize(imp, node, x, p, form="divide")
    return quantization.dequantize(imp, node, q, p)
