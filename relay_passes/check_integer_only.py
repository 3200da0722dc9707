"""What of an integer module is still float, and why."""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import TensorType
from tvm_q4.quant import IntRange
from tvm_q4.relay_passes._rewrite import (
    dataflow_bindings,
    dtype_of,
    op_name,
    tensor_name,
    variables,
)
from tvm_q4.relay_passes.qdq_rules.movement import RESHAPES

_LAYERS = ("relax.nn.conv2d", "relax.matmul")
_NEEDS_RESULT = (
    "relax.add", "relax.nn.relu", "relax.clip", "relax.nn.max_pool2d", "relax.concat",
    "relax.nn.pad", "relax.strided_slice", "relax.permute_dims",
)  # fmt: skip
_NEEDS_INPUT = ("relax.nn.avg_pool2d", "relax.nn.adaptive_avg_pool2d", "relax.mean")


def check_integer_only(mod: tvm.IRModule) -> list[dict[str, str]]:
    """Float operators of ``main`` in a module of the integer stage, in order.

    The quantization of the input, the dequantization of the result and reshapes are not counted.

    Returns
    -------
    list of dict
        ``name`` of the tensor, ``op`` and ``reason``; empty where the network is integer only.
    """
    bindings = dataflow_bindings(mod["main"])
    made = {b.var: b.value for b in bindings}
    found = []
    for b in bindings:
        name = op_name(b.value)
        if not name or ops.is_q4(b.value) or name in RESHAPES or not _is_float(b):
            continue
        found.append({"name": tensor_name(b), "op": name, "reason": _reason(b.value, made)})
    return found


def _is_float(binding: relax.VarBinding) -> bool:
    if isinstance(binding.var.ty, TensorType):
        return dtype_of(binding.var).startswith(("float", "bfloat"))
    return True


def _reason(call: relax.Call, made: dict[relax.Var, relax.Expr]) -> str:
    name = op_name(call)
    quantized = all(_is_dequantized(made.get(v)) for v in variables(call))
    if name in _LAYERS and quantized:
        wide = any(_bits(made[v]) > 8 for v in variables(call))
        weight = "weight is not quantized, or not to int8 around its zero point"
        return f"its {'input has more than 8 bits' if wide else weight}"
    if name in _LAYERS:
        return "its input is not quantized"
    if name == "relax.nn.batch_norm":
        return "it could not be folded into a convolution"
    if name in _NEEDS_INPUT and not quantized:
        return "its input is not quantized"
    if name in _NEEDS_RESULT:
        return "its result is not quantized" if quantized else "it works on float tensors"
    return "the operator has no integer form here"


def _is_dequantized(value: relax.Expr | None) -> bool:
    return value is not None and ops.is_q4(value, "dequantize")


def _bits(dequantize: relax.Call) -> int:
    return IntRange(int(dequantize.attrs["qmin"]), int(dequantize.attrs["qmax"])).bits
