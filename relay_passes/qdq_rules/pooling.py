"""Pooling: maxima stay pending, averages become int32 sums whose division joins the next ratio."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange
from tvm_q4.reference_ops.windows import window_counts
from tvm_q4.relay_passes._rewrite import op_name, shape_of, tensor_name
from tvm_q4.relay_passes.qdq_rules.real import Constant, MaxPool, Real, Tensor

if TYPE_CHECKING:
    from tvm_q4.relay_passes.qdq_to_integer import QdqRewriter

_INT32 = IntRange(INT32_MIN, INT32_MAX)


def _windows(call: relax.Call) -> dict[str, Any] | None:
    """Windows of a pool in NCHW whose output size is PyTorch's, else None."""
    a = call.attrs
    if str(a.layout) != "NCHW" or str(a.out_layout) not in ("NCHW", ""):
        return None
    windows: dict[str, Any] = {
        k: ops.ints(getattr(a, k)) for k in ("pool_size", "strides", "padding", "dilation")
    }
    windows["ceil_mode"] = bool(a.ceil_mode)
    return windows if _output(call, windows) == shape_of(call)[2:] else None


def _output(call: relax.Call, w: dict[str, Any]) -> tuple[int, int]:
    size = shape_of(call.args[0])[2:]
    return ops.pool_output(
        size,
        w["pool_size"],
        w["strides"],
        w["padding"],
        w["dilation"],
        w["ceil_mode"],
        op_name(call),
    )


def max_pool(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """Maximum over windows."""
    x, windows = pass_.operand(binding.value.args[0]), _windows(binding.value)
    if not isinstance(x, Real) or isinstance(x, Constant) or windows is None:
        return None
    if not _positions(binding.value, windows, include_pad=False).all():
        msg = (
            f"{op_name(binding.value)} {tensor_name(binding)!r}: a window of "
            f"{windows['pool_size']} with padding {windows['padding']} holds padding alone; "
            "use less padding"
        )
        raise UnsupportedError(msg)
    return MaxPool(origin=binding, shape=shape_of(binding.value), x=x, attrs=windows)


def average(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """Average pool with stated windows, or an adaptive one whose windows are all alike."""
    call = binding.value
    if op_name(call) == "relax.nn.adaptive_avg_pool2d":
        windows = _adaptive_windows(call)
        include = True
    else:
        windows = _windows(call)
        include = bool(call.attrs.count_include_pad)
    if windows is None or windows.pop("dilation") != [1, 1]:
        return None
    return _sum(pass_, binding, windows, include)


def _adaptive_windows(call: relax.Call) -> dict[str, Any] | None:
    """Windows if all bins ``[floor(i n / o), ceil((i + 1) n / o))`` have one size and one step."""
    kernel, strides = [], []
    for n, o in zip(shape_of(call.args[0])[2:], shape_of(call)[2:], strict=True):
        starts = [i * n // o for i in range(o)]
        sizes = {-(-(i + 1) * n // o) - s for i, s in enumerate(starts)}
        steps = {b - a for a, b in pairwise(starts)} or {1}
        if len(sizes) > 1 or len(steps) > 1:
            return None
        kernel.append(sizes.pop())
        strides.append(steps.pop())
    return {
        "pool_size": kernel, "strides": strides, "padding": [0] * 4, "dilation": [1, 1],
        "ceil_mode": False,
    }  # fmt: skip


def global_average(pass_: QdqRewriter, binding: relax.VarBinding) -> Real | None:
    """Mean over height and width."""
    call = binding.value
    shape = shape_of(call.args[0])
    axes = [] if call.attrs.axis is None else [a % len(shape) for a in ops.ints(call.attrs.axis)]
    if len(shape) != 4 or sorted(axes) != [2, 3]:
        return None
    windows = {
        "pool_size": list(shape[2:]),
        "strides": [1, 1],
        "padding": [0] * 4,
        "ceil_mode": False,
    }
    total = _sum(pass_, binding, windows, True)
    if total is None or bool(call.attrs.keepdims):
        return total
    total.shape = shape_of(call)
    total.var = pass_.emit(relax.op.reshape(total.var, total.shape), f"{total.name}_flat")
    total.scale = total.scale.reshape(1, -1)
    return total


def _sum(
    pass_: QdqRewriter, binding: relax.VarBinding, windows: dict[str, Any], include: bool
) -> Tensor | None:
    """``q4.avg_pool2d`` as a ``sum``; its unit is the input's scale over the counted positions."""
    x = pass_.integer_operand(binding.value.args[0], bits=16)
    if x is None:
        return None
    count = _counts(binding.value, windows, include)
    if not count.all():
        return None
    name = pass_.names.take(tensor_name(binding))
    var = pass_.emit_q4(
        ops.avg_pool2d(
            x.var,
            name=name,
            zero_point=x.zero_point,
            count_include_pad=include,
            rounding="sum",
            **windows,
        )
    )
    return Tensor(
        origin=binding, shape=shape_of(var), var=var, name=name, range=_INT32,
        scale=x.scale / count, bound=np.array(x.bound.max() * np.prod(windows["pool_size"])),
    )  # fmt: skip


def _positions(call: relax.Call, windows: dict[str, Any], include_pad: bool) -> NDArray[np.int64]:
    """Positions [OH, OW] of each window inside the input, or also in its stated padding."""
    w = {"dilation": [1, 1], **windows}
    geometry = (w["pool_size"], w["strides"], w["padding"], w["dilation"], _output(call, w))
    return window_counts(shape_of(call.args[0])[2:], *geometry, include_pad=include_pad)


def _counts(call: relax.Call, windows: dict[str, Any], include: bool) -> NDArray[np.int64]:
    """Counted positions of each window, [1, 1, OH, OW], or [1, 1, 1, 1] if all have as many."""
    counts = _positions(call, windows, include)[None, None]
    return counts[:, :, :1, :1] if (counts == counts.flat[0]).all() else counts
