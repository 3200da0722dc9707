"""Result types of the q4 operators, and the shape arithmetic that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax

from tvm_q4 import errors
from tvm_q4._compat import TensorType


def ints(values: Any) -> list[int]:
    """Python ints of an FFI array or sequence."""
    return [int(v) for v in values]


def _shape(expr: relax.Expr) -> list[int]:
    return [int(d) for d in expr.ty.shape]


def _same_shape(call: relax.Call, _ctx: Any) -> TensorType:
    return TensorType(_shape(call.args[0]), call.attrs["dtype"])


def pooled_size(size: int, kernel: int, stride: int, pads: int, dilation: int, ceil: bool) -> int:
    """Output positions along one axis for `pads` padding positions in all."""
    span = size + pads - dilation * (kernel - 1) - 1
    return (-(-span // stride) if ceil else span // stride) + 1


def pool_output(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool = False,
    where: str = "pool",
) -> tuple[int, int]:
    """Output height and width; in ceil mode no window starts in the padding after (PyTorch).

    `padding` is (top, left, bottom, right). Raises InputError where no window fits.
    """
    out = []
    for i in (0, 1):
        n = pooled_size(
            size[i], kernel[i], strides[i], padding[i] + padding[i + 2], dilation[i], ceil
        )
        if ceil and (n - 1) * strides[i] >= size[i] + padding[i]:
            n -= 1
        if n < 1:
            msg = (
                f"{where}: a window of {list(kernel)} does not fit the input of {list(size)} "
                f"with padding {list(padding)}; use a larger image"
            )
            raise errors.InputError(msg)
        out.append(n)
    return out[0], out[1]


def _where(call: relax.Call) -> str:
    return f"{call.op.name} {call.attrs['name']!s}"


def _expect(holds: bool, call: relax.Call, what: str) -> None:
    """Raise InputError with the shapes of all arguments unless `holds`."""
    if not holds:
        shapes = ", ".join(str(_shape(a)) for a in call.args)
        msg = f"{_where(call)}: {what}; the arguments have shapes {shapes}"
        raise errors.InputError(msg)


def _conv_type(call: relax.Call, _ctx: Any) -> TensorType:
    n, c, h, w = _shape(call.args[0])
    o, i, kh, kw = _shape(call.args[1])
    a = call.attrs
    groups = int(a["groups"])
    _expect(c == i * groups and o % groups == 0, call, f"channels do not fit {groups} group(s)")
    _expect(_shape(call.args[2]) in ([o], [1]), call, "the bias needs one value a channel")
    pad, stride, dil = ints(a["padding"]), ints(a["strides"]), ints(a["dilation"])
    out = pool_output((h, w), (kh, kw), stride, pad, dil, where=_where(call))
    return TensorType([n, o, *out], "int32")


def _dense_type(call: relax.Call, _ctx: Any) -> TensorType:
    (n, i), (o, k) = _shape(call.args[0]), _shape(call.args[1])
    _expect(i == k, call, "data and weight disagree on the input features")
    _expect(_shape(call.args[2]) in ([o], [1]), call, "the bias needs one value a feature")
    return TensorType([n, o], "int32")


def _add_type(call: relax.Call, ctx: Any) -> TensorType:
    _expect(_shape(call.args[0]) == _shape(call.args[1]), call, "both sides must have one shape")
    return _same_shape(call, ctx)


def _pool_type(call: relax.Call, _ctx: Any) -> TensorType:
    n, c, h, w = _shape(call.args[0])
    a = call.attrs
    k, s, p, d = (ints(a[key]) for key in ("pool_size", "strides", "padding", "dilation"))
    out = pool_output((h, w), k, s, p, d, bool(a["ceil_mode"]), _where(call))
    return TensorType([n, c, *out], a["dtype"])


def _concat_type(call: relax.Call, _ctx: Any) -> TensorType:
    axis = int(call.attrs["axis"])
    shapes = [_shape(a) for a in call.args]
    rest = {(*s[:axis], *s[axis + 1 :]) for s in shapes}
    _expect(len(rest) == 1, call, f"inputs differ beyond axis {axis}")
    shape = list(shapes[0])
    shape[axis] = sum(s[axis] for s in shapes)
    return TensorType(shape, call.attrs["dtype"])


TYPES: dict[str, Callable[[relax.Call, Any], TensorType]] = {
    "quantize": _same_shape,
    "dequantize": _same_shape,
    "requantize": _same_shape,
    "add": _add_type,
    "conv2d": _conv_type,
    "dense": _dense_type,
    "max_pool2d": _pool_type,
    "avg_pool2d": _pool_type,
    "concat": _concat_type,
}
