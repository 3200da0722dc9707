"""Which tensor of an ONNX model holds the integers of each ``q4.quantize`` that was made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tvm import relax

from tvm_q4.frontend.common.values import Value
from tvm_q4.frontend.onnx_ops.registry import QONNX
from tvm_q4.frontend.onnx_structure import OnnxGraph
from tvm_q4.ops import is_q4


def onnx_tensors(
    graph: OnnxGraph, env: Mapping[str, Value], bindings: Iterable[relax.VarBinding]
) -> dict[str, str]:
    """Names of ONNX tensors by the names of the activations' ``q4.quantize``.

    The last one counts where several hold the same integers: the Clip behind a QuantizeLinear, or
    the transpose that brings them to [N, C, H, W]. A QONNX ``Quant`` node is named by its float
    result.

    Parameters
    ----------
    graph : OnnxGraph
    env : mapping of str to Value
        What each ONNX tensor became, in order.
    bindings : iterable of VarBinding
        The Relax function's.
    """
    calls = {b.var: b.value for b in bindings}
    found: dict[str, str] = {}
    for name, value in env.items():
        call, maker = calls.get(value.expr), graph.makers.get(name)
        if value.constant or maker is None:
            continue
        if maker.domain in QONNX and is_q4(call, "dequantize"):
            call = calls.get(call.args[0])
        if is_q4(call, "quantize"):
            found[str(call.attrs["name"])] = name
    return found
