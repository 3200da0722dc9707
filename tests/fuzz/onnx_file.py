"""A small quantized network as an ``.onnx`` file, in each of the styles that the importer reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.frontend.onnx_graphs import MICROSOFT, Onnx
from tvm_q4.onnx_rewrite import QONNX_DOMAINS

_SHAPE = ("batch", 3, 8, 7)


def _weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-8, 8, shape)


def _float(g: Onnx, style: str, x: str) -> str:
    """Quantize and dequantize, as `style` writes them."""
    if style == "QCDQ":
        return g.clipped(x, 0.25, 0, 15, "uint8")
    if style == "QONNX":
        parts = [g.const(v, "float32") for v in (0.25, 0.0, 4.0)]
        return g.node("Quant", x, *parts, domain=QONNX_DOMAINS[0], signed=0, narrow=0,
                      rounding_mode="ROUND")  # fmt: skip
    return g.qdq(x, 0.25, 3, "uint8")


def _block(g: Onnx, style: str) -> str:
    """Convolution, pooling, a residual add, and a linear layer, around quantizers."""
    x = _float(g, style, "x")
    scale = g.const([0.01, 0.02, 0.03, 0.04], "float32")
    weight = g.node("DequantizeLinear", g.const(_weight(4, 3, 3, 3), "int8"), scale, axis=0)
    c = g.node("Conv", x, weight, g.const([0.1, 0.2, -1, 0], "float32"), pads=[1, 1, 1, 1])
    a = _float(g, style, g.node("Relu", c))
    weight = g.dq(g.const(_weight(4, 4, 1, 1), "int8"), 0.02)
    c = g.node("Conv", g.node("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2]), weight)
    pooled = g.node("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2])
    total = _float(g, style, g.node("Add", c, pooled))
    mean = _float(g, style, g.node("GlobalAveragePool", total))
    flat = g.node("Flatten", mean, axis=1)
    return g.node("Gemm", flat, g.dq(g.const(_weight(5, 4), "int8"), 0.05), transB=1)


def _operator_oriented(g: Onnx) -> str:
    scale = (g.const(0.25, "float32"), g.const(3, "uint8"))
    w_scale, w_zero = g.const(0.02, "float32"), g.const(0, "int8")
    q = g.node("QuantizeLinear", "x", *scale)
    weight = g.const(_weight(3, 3, 3, 3), "int8")
    bias = g.const([5, 6, 7], "int32")
    c = g.node("QLinearConv", q, *scale, weight, w_scale, w_zero, *scale, bias, pads=[1] * 4)
    a = g.node("QLinearAdd", c, *scale, q, *scale, *scale, domain=MICROSOFT)
    m = g.node("QLinearGlobalAveragePool", a, *scale, *scale, domain=MICROSOFT)
    flat = g.node("Flatten", m, axis=1)
    weight = g.const(_weight(5, 3), "int8")
    return g.node("QGemm", flat, *scale, weight, w_scale, w_zero, domain=MICROSOFT, transB=1)


def write_model(path: Path, style: str) -> Path:
    """Write the network; `style` is QDQ, QCDQ, QOperator or QONNX."""
    g = Onnx(_SHAPE, opset=17)
    result = _operator_oriented(g) if style == "QOperator" else _block(g, style)
    onnx.save(g.model(result, domains=QONNX_DOMAINS[:1]), path)
    return path
