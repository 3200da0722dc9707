"""Data movement on integer tensors: the same operator, with the zero point where zero is padded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.relay_passes._rewrite import MainRewriter, op_name
from tvm_q4.relay_passes.qdq_rules.real import Movement, Quantizer, Tensor, derived, expressible

RESHAPES = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
MOVEMENTS = (*RESHAPES, "relax.permute_dims", "relax.strided_slice", "relax.nn.pad")


def keeps_elements(real: Movement) -> bool:
    """Whether the result holds the same elements in the same order."""
    return op_name(real.call) in RESHAPES


def is_supported(call: relax.Call) -> bool:
    """Whether a movement has a meaning on integers: constant padding, positive strides."""
    name = op_name(call)
    if name == "relax.nn.pad":
        return str(call.attrs.pad_mode) == "constant" and len(call.args) == 1
    if name == "relax.strided_slice":
        return len(call.args) < 5 or min(_numbers(call.args[4])) > 0
    return True


def _numbers(expr: relax.Expr) -> list[int]:
    return [int(f.value) for f in expr.fields]


def moved_tensor(real: Movement, x: Tensor, rewriter: MainRewriter) -> Tensor | None:
    """`x` moved, or None where the padding or the scales have no integer form."""
    fill = _exact_fill(real.call, x)
    scale = _moved_scale(real.call, x, real.shape)
    if fill is None or scale is None:
        return None
    var = rewriter.emit(_applied(real.call, x.var, fill), str(real.origin.var.name))
    bounds = IntRange(min(x.range.lo, fill), max(x.range.hi, fill))
    bound = np.array(max(int(x.bound.max()), abs(fill - x.zero_point)))
    return derived(
        x, origin=real.origin, shape=real.shape, var=var, scale=scale, range=bounds, bound=bound
    )


def moved_quantized(
    real: Movement, x: relax.Var, q: Quantizer, rewriter: MainRewriter
) -> relax.Var:
    """Integers `x`, quantized by `q` already, moved as the model moves the float tensor."""
    fill = q.steps(_pad_value(real.call))
    return rewriter.emit(_applied(real.call, x, fill), str(real.origin.var.name))


def _pad_value(call: relax.Call) -> float:
    return float(call.attrs.pad_value) if op_name(call) == "relax.nn.pad" else 0.0


def _exact_fill(call: relax.Call, x: Tensor) -> int | None:
    """The integer that stands for the padded value; the zero point where nothing is padded."""
    value = _pad_value(call)
    if value == 0:
        return x.zero_point
    steps = value / x.scale + x.zero_point
    first = steps.flat[0]
    limits = np.iinfo(str(x.var.ty.dtype))
    exact = first == np.rint(first) and (steps == first).all() and limits.min <= first <= limits.max
    return int(first) if exact else None


def _applied(call: relax.Call, x: relax.Var, fill: int) -> relax.Call:
    if op_name(call) == "relax.nn.pad":
        return relax.op.nn.pad(x, ops.ints(call.attrs.pad_width), "constant", fill)
    return relax.Call(call.op, [x, *call.args[1:]], call.attrs, call.ty_args, call.span)


def _moved_scale(call: relax.Call, x: Tensor, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Scales of the moved tensor; None where they cannot be told apart by channel or position."""
    moved: NDArray[np.float64] | None
    if x.uniform:
        return x.scale.reshape([1] * len(shape))
    if op_name(call) in RESHAPES:
        moved = _reshaped_scale(x, shape)
    elif op_name(call) == "relax.permute_dims":
        axes = None if call.attrs.axes is None else ops.ints(call.attrs.axes)
        moved = np.transpose(x.scale, axes)
        # Scales that leave the channel axis have no form as multipliers.
        moved = moved if moved.size == moved.shape[1] else None
    elif op_name(call) == "relax.strided_slice":
        moved = _sliced(x.scale, call)
    else:
        width = np.reshape(ops.ints(call.attrs.pad_width), (-1, 2))
        moved = np.pad(
            x.scale,
            [tuple(w) if n > 1 else (0, 0) for w, n in zip(width, x.scale.shape, strict=True)],
            "edge",
        )
    return moved if moved is not None and expressible(moved) and moved.shape[0] == 1 else None


def _reshaped_scale(x: Tensor, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    if not shape or shape[0] != x.shape[0]:
        return None
    return np.broadcast_to(x.scale, (1, *x.shape[1:])).reshape(1, *shape[1:])


def _sliced(scale: NDArray[Any], call: relax.Call) -> NDArray[Any]:
    axes, begin, end = (_numbers(a) for a in call.args[1:4])
    steps = _numbers(call.args[4]) if len(call.args) > 4 else [1] * len(axes)
    index = [slice(None)] * scale.ndim
    for axis, b, e, s in zip(axes, begin, end, steps, strict=True):
        if scale.shape[axis] > 1:
            index[axis] = slice(b, e, s)
    return scale[tuple(index)]
