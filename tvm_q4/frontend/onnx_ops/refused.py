"""Operators of quantized models that have no exact integer form here, with the reason."""

from __future__ import annotations

from typing import NoReturn

from tvm_q4.frontend.common.values import ImporterFace
from tvm_q4.frontend.onnx_ops.registry import MICROSOFT, QONNX, NodeView, converts

_DYNAMIC = "its scales are computed at run time; use static (calibrated) quantization"
_TABLE = "it is computed by a table or in float; remove it from the model, or leave it float"
_REFUSED = {
    ("", "DynamicQuantizeLinear"): _DYNAMIC,
    ("", "ConvInteger"): _DYNAMIC,
    ("", "MatMulInteger"): _DYNAMIC,
    (MICROSOFT, "DynamicQuantizeMatMul"): _DYNAMIC,
    (MICROSOFT, "MatMulIntegerToFloat"): _DYNAMIC,
    (MICROSOFT, "MatMulNBits"): "its weights are quantized in blocks and its activations are float",
    **{
        (MICROSOFT, f"QLinear{name}"): _TABLE
        for name in ("LeakyRelu", "Sigmoid", "Mul", "ReduceMean", "Where")
    },
    **{(domain, "BipolarQuant"): "1-bit values are not supported" for domain in QONNX},
    **{(domain, "Trunc"): "truncating average pools are not supported" for domain in QONNX},
    **{(domain, "FloatQuant"): "minifloats have no integer form" for domain in QONNX},
}


def _refuse(domain: str, name: str, why: str) -> None:
    @converts(name, domain=domain)
    def convert(_imp: ImporterFace, node: NodeView) -> NoReturn:
        raise node.unsupported(f"this operator is not supported: {why}")


for (_domain, _name), _why in _REFUSED.items():
    _refuse(_domain, _name, _why)
