"""From float operators of the QDQ stage to `Real` values, one small rule an operator.

A rule returns None where the operator has no integer meaning there; it then stays float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.quant import IntRange
from tvm_q4.reference_ops.movement import MOVEMENT_OPS
from tvm_q4.relay_passes._rewrite import layer_name, op_name, shape_of, tensor_name
from tvm_q4.relay_passes.qdq_rules.movement import MOVEMENTS, is_supported
from tvm_q4.relay_passes.qdq_rules.pooling import average, global_average, max_pool
from tvm_q4.relay_passes.qdq_rules.real import (
    Clip,
    Concat,
    Constant,
    Linear,
    Movement,
    Quantizer,
    Real,
    Sum,
    Tensor,
    broadcast_scale,
)

if TYPE_CHECKING:
    from tvm_q4.relay_passes.qdq_to_integer import QdqRewriter

Rule = Callable[["QdqRewriter", relax.VarBinding], Real | None]


def quantizer(call: relax.Call) -> Quantizer | None:
    """What a ``q4.quantize`` asks for; None where it has a scale for each channel."""
    scale, zero_point = ops.const_array(call.args[1]), ops.const_array(call.args[2])
    if scale.size != 1 or zero_point.size != 1:
        return None
    a = call.attrs
    bounds = IntRange(int(a["qmin"]), int(a["qmax"]))
    return Quantizer(float(scale.item()), int(zero_point.item()), bounds, str(a["dtype"]))


def dequantize(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """An integer tensor, or a constant, with its scale."""
    call, a = binding.value, binding.value.attrs
    rank, axis = len(shape_of(call)), int(a["axis"])
    scale = broadcast_scale(ops.const_array(call.args[1]).astype(np.float64), rank, axis)
    scale = 1.0 / scale if str(a["form"]) == "divide" else scale
    zero_point = broadcast_scale(ops.const_array(call.args[2]).astype(np.int64), rank, axis)
    bounds = IntRange(int(a["qmin"]), int(a["qmax"]))
    common = {"origin": binding, "shape": shape_of(call), "scale": scale, "range": bounds}
    if isinstance(call.args[0], GenericConst):
        if str(a["form"]) != "multiply":
            return None
        return Constant(values=ops.const_array(call.args[0]), zero_point=zero_point, **common)
    one_zero = (zero_point == zero_point.flat[0]).all()
    by_channel = scale.size == 1 or axis % rank == 1
    if not one_zero or not by_channel or not isinstance(call.args[0], relax.Var):
        return None
    z = int(zero_point.flat[0])
    var = pass_.resolve(call.args[0])
    bound = np.array(max(abs(bounds.lo - z), abs(bounds.hi - z)), np.int64)
    name = pass_.name_of(call.args[0])
    return Tensor(var=var, zero_point=z, bound=bound, name=name, **common)


def _integer_weight(weight: Constant) -> tuple[NDArray[np.int8], NDArray[np.float64], int] | None:
    """int8 weights, one scale an output channel, declared bits; None without such a form."""
    if weight.scale is None or weight.zero_point is None or weight.range is None:
        return None
    out = weight.values.shape[0]
    values = weight.values.astype(np.int64) - weight.zero_point
    scale = np.broadcast_to(weight.scale, (out, *weight.scale.shape[1:])).reshape(out, -1)
    if values.min() < -128 or values.max() > 127 or (scale != scale[:, :1]).any():
        return None
    lo = min(weight.range.lo - int(weight.zero_point.max()), int(values.min()), -1)
    hi = max(weight.range.hi - int(weight.zero_point.min()), int(values.max()))
    bits = min(IntRange(lo, hi).bits, 8)
    return values.astype(np.int8), np.ascontiguousarray(scale[:, 0]), bits


def _linear(
    pass_: QdqRewriter,
    binding: relax.VarBinding,
    kind: str,
    weight: Constant,
    attrs: dict[str, Any],
) -> Real | None:
    x = pass_.integer_operand(binding.value.args[0], bits=8)
    integers = _integer_weight(weight)
    if x is None or integers is None or not x.uniform:
        return None
    values, scale, bits = integers
    return Linear(
        origin=binding, shape=shape_of(binding.value), kind=kind, x=x, weight=values,
        weight_scale=scale, weight_bits=bits, bias=np.zeros(len(values)),
        name=layer_name(tensor_name(weight.origin), binding), attrs=attrs,
    )  # fmt: skip


def conv2d(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """A convolution NCHW, OIHW of a quantized tensor with constant integer weights."""
    a, weight = binding.value.attrs, pass_.operand(binding.value.args[1])
    layouts = (str(a.data_layout), str(a.kernel_layout), str(a.out_layout))
    if layouts not in (("NCHW", "OIHW", "NCHW"), ("NCHW", "OIHW", "")) or not isinstance(
        weight, Constant
    ):
        return None
    windows = {k: ops.ints(getattr(a, k)) for k in ("strides", "padding", "dilation")}
    return _linear(pass_, binding, "conv2d", weight, {**windows, "groups": int(a.groups)})


def matmul(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """``x @ w`` of a quantized matrix [N, I] with constant integer weights [I, O]."""
    weight = pass_.operand(binding.value.args[1])
    if not isinstance(weight, Constant) or weight.scale is None or len(weight.shape) != 2:
        return None
    if len(shape_of(binding.value.args[0])) != 2:
        return None
    rows = Constant(
        origin=weight.origin, shape=weight.shape[::-1], values=weight.values.T,
        scale=weight.scale.T, zero_point=weight.zero_point.T, range=weight.range,
    )  # fmt: skip
    return _linear(pass_, binding, "dense", rows, {})


def add(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """A layer's bias, or the residual add of two tensors of one shape."""
    lhs, rhs = (pass_.operand(a) for a in binding.value.args)
    if isinstance(lhs, Constant):
        lhs, rhs = rhs, lhs
    if isinstance(lhs, Linear) and isinstance(rhs, Constant):
        return _biased(binding, lhs, rhs)
    if not isinstance(lhs, Real) or not isinstance(rhs, Real):
        return None
    if isinstance(rhs, Constant) or lhs.shape != rhs.shape:
        return None
    return Sum(origin=binding, shape=lhs.shape, lhs=lhs, rhs=rhs)


def _biased(binding: relax.VarBinding, layer: Linear, bias: Constant) -> Real | None:
    values = bias.real()
    if shape_of(binding.value) != layer.shape or values.ndim > len(layer.shape):
        return None
    values = values.reshape([1] * (len(layer.shape) - values.ndim) + list(values.shape))
    if values.size not in (1, values.shape[1]):
        return None
    total = layer.bias + values.reshape(-1)
    return Linear(
        origin=binding, shape=layer.shape, kind=layer.kind, x=layer.x, weight=layer.weight,
        weight_scale=layer.weight_scale, weight_bits=layer.weight_bits, bias=total, name=layer.name,
        attrs=layer.attrs,
    )  # fmt: skip


def clip(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """ReLU, ReLU6 and other clamps."""
    call = binding.value
    x = pass_.operand(call.args[0])
    if not isinstance(x, Real) or isinstance(x, Constant):
        return None
    low, high = (0.0, np.inf) if len(call.args) == 1 else (float(a.value) for a in call.args[1:])
    return Clip(origin=binding, shape=x.shape, x=x, low=low, high=high)


def movement(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """Reshapes, permutations, slices and constant padding."""
    call = binding.value
    x = pass_.operand(call.args[0])
    if isinstance(x, Constant):
        return _moved_constant(binding, x)
    if not isinstance(x, Real) or not is_supported(call):
        return None
    return Movement(origin=binding, shape=shape_of(call), x=x, call=call)


def _moved_constant(binding: relax.VarBinding, x: Constant) -> Constant | None:
    """A parameter reshaped or transposed, its scales with it."""
    call = binding.value
    if op_name(call) not in ("relax.reshape", "relax.permute_dims"):
        return None
    move = MOVEMENT_OPS[op_name(call)]
    arrays = {"values": x.values, "scale": x.scale, "zero_point": x.zero_point}
    moved = {
        k: None if v is None else move(call, np.broadcast_to(v, x.values.shape))
        for k, v in arrays.items()
    }
    # The origin stays the dequantization, whose name tells a layer's name.
    return Constant(origin=x.origin, shape=shape_of(call), range=x.range, **moved)


def concat(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """Tensors joined along an axis other than the batch."""
    fields, axis = binding.value.args[0], binding.value.attrs.axis
    if not isinstance(fields, relax.Tuple) or axis is None:
        return None
    parts = [pass_.operand(f) for f in fields.fields]
    shape = shape_of(binding.value)
    if (
        any(not isinstance(p, Real) or isinstance(p, Constant) for p in parts)
        or int(axis) % len(shape) == 0
    ):
        return None
    return Concat(origin=binding, shape=shape, parts=parts, axis=int(axis) % len(shape))


RULES: dict[str, Rule] = {
    "q4.dequantize": dequantize,
    "relax.nn.conv2d": conv2d,
    "relax.matmul": matmul,
    "relax.add": add,
    "relax.nn.relu": clip,
    "relax.clip": clip,
    "relax.nn.max_pool2d": max_pool,
    "relax.nn.avg_pool2d": average,
    "relax.nn.adaptive_avg_pool2d": average,
    "relax.mean": global_average,
    "relax.concat": concat,
    **dict.fromkeys(MOVEMENTS, movement),
}
