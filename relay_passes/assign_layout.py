"""AssignLayout: decide the physical layout of every integer tensor of a fused module.

One layout goes through the whole network: NHWC, channels padded to the vector width, with a halo as
wide as the widest padding of the convolutions that read the tensor. Only a tensor of few channels
that 8-bit convolutions alone read (the image) keeps 4 or 8 physical channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import TensorType
from tvm_q4.errors import UnsupportedError
from tvm_q4.relay_passes._rewrite import dataflow_bindings, variables
from tvm_q4.schedules.layout import LANES, Layout, round_up, shape4


@dataclass
class _Needs:
    """What the readers of one tensor ask for."""

    halo: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    fills: set[int] = field(default_factory=set)
    narrow_channels: bool = True


@dataclass(frozen=True)
class Placement:
    """Layout of a tensor and the value of its halo."""

    layout: Layout
    fill: int = 0


def is_integer(expr: relax.Expr) -> bool:
    """Whether an expression is a tensor of integers."""
    return isinstance(expr.ty, TensorType) and str(expr.ty.dtype).startswith(("int", "uint"))


def _anchor_of(func: relax.Function) -> tuple[dict[str, Any], relax.Var] | None:
    """Attributes and data operand of a fused function's convolution, if it has one."""
    for b in dataflow_bindings(func):
        if ops.is_q4(b.value, "conv2d"):
            return ops.attrs_of(b.value), b.value.args[0]
    return None


def _is_quantize(mod: tvm.IRModule, value: relax.Expr) -> bool:
    """Whether a value is quantized here: only that kernel writes less than a vector of channels."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, relax.GlobalVar):
        return False
    return ops.is_q4(dataflow_bindings(mod[value.op])[0].value, "quantize")


def _read_by_group(
    needs: dict[relax.Var, _Needs], func: relax.Function, args: list[relax.Var]
) -> None:
    anchor = _anchor_of(func)
    reads = [v for b in dataflow_bindings(func) for v in variables(b.value)]
    for param, arg in zip(func.params, args, strict=True):
        if anchor is None or param not in (anchor[1],):
            needs[arg].narrow_channels = False
            continue
        attrs = anchor[0]
        needs[arg].halo = [
            max(a, b) for a, b in zip(needs[arg].halo, attrs["padding"], strict=True)
        ]
        alone = reads.count(param) == 1
        simple = attrs["groups"] == 1 and list(attrs["dilation"]) == [1, 1]
        needs[arg].narrow_channels &= alone and attrs["weight_bits"] == 8 and simple
        if any(attrs["padding"]):
            needs[arg].fills.add(int(attrs["zero_point"]))


def _channels(channels: int, needs: _Needs) -> int:
    if needs.narrow_channels and channels <= 8:
        return 4 if channels <= 4 else 8
    return round_up(channels, LANES)


def assign_layouts(mod: tvm.IRModule) -> dict[relax.Var, Placement]:
    """Placement of every integer variable of ``main``.

    Raises
    ------
    UnsupportedError
        If two convolutions pad one tensor with different values.
    """
    main = mod["main"]
    variables = [*main.params, *(b.var for b in dataflow_bindings(main))]
    needs = {v: _Needs() for v in variables}
    for b in dataflow_bindings(main):
        value = b.value
        needs[b.var].narrow_channels = _is_quantize(mod, value)
        if isinstance(value, relax.Call) and isinstance(value.op, relax.GlobalVar):
            _read_by_group(needs, mod[value.op], list(value.args))
        elif isinstance(value, relax.Call):
            for arg in value.args:
                if isinstance(arg, relax.Var):
                    needs[arg].narrow_channels = False
    return {v: _place(v, needs[v]) for v in variables if is_integer(v)}


def _place(var: relax.Var, needs: _Needs) -> Placement:
    if len(needs.fills) > 1:
        msg = (
            f"tensor {var.name!r} is padded with {sorted(needs.fills)} by different convolutions; "
            "give its readers one zero point"
        )
        raise UnsupportedError(msg)
    channels = shape4(tuple(int(d) for d in var.ty.shape))[1]
    top, left, bottom, right = needs.halo
    layout = Layout("NHWC", (top, left, bottom, right), _channels(channels, needs))
    return Placement(layout, next(iter(needs.fills), 0))
