"""DropDeadChannels: channels that round to nothing whatever they hold need no accumulator.

A ratio below 2**-32 is the multiplier 0 (numerics.md, requantization): all int32 values of such a
channel become the zero point. Quantizers write channels like that for filters that training has
made vanish, with a bias just inside int32, and the sum of both could overflow. Where it could, and
every reader multiplies the channel by 0, weights and bias become 0, which changes no result.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4.quant import INT32_MAX
from tvm_q4.ranges import value_ranges
from tvm_q4.relay_passes._rewrite import MainRewriter, dataflow_bindings, shape_of, variables
from tvm_q4.relay_passes.check_overflow import layer_bound

_Mask = NDArray[np.bool_]


class _Dropper(MainRewriter):
    def __init__(self, mod: tvm.IRModule, dead: dict[relax.Var, _Mask]) -> None:
        super().__init__(mod)
        self.dead = dead

    def visit(self, binding: relax.VarBinding) -> relax.Expr:
        if binding.var not in self.dead:
            return self.keep(binding)
        call, dead = binding.value, self.dead[binding.var]
        weight, bias = (ops.const_array(a).copy() for a in call.args[1:3])
        weight[dead], bias = 0, np.where(dead, 0, bias)
        parts = [relax.const(weight, "int8"), relax.const(bias.astype(np.int32), "int32")]
        kind = str(call.op.name).removeprefix("q4.")
        return self.emit_q4(
            ops.call(kind, [self.remap(call.args[0]), *parts], **ops.attrs_of(call))
        )


def _dead_channels(mod: tvm.IRModule) -> dict[relax.Var, _Mask]:
    """Channels of each layer that may overflow and that no reader tells from zero."""
    bindings = dataflow_bindings(mod["main"])
    ranges = value_ranges(mod)
    found = {}
    for b in bindings:
        if not (ops.is_q4(b.value, "conv2d") or ops.is_q4(b.value, "dense")):
            continue
        overflow = layer_bound(b.value, ranges[b.value.args[0]]) > INT32_MAX
        if overflow.any():
            dead = overflow & _unread(b.var, mod, bindings)
            if dead.any():
                found[b.var] = dead
    return found


def _unread(var: relax.Var, mod: tvm.IRModule, bindings: list[relax.VarBinding]) -> _Mask:
    """Channels that every reader of `var` multiplies by 0."""
    channels = shape_of(var)[1]
    dead = np.full(channels, not mod["main"].body.body.same_as(var))
    for b in bindings:
        if var in variables(b.value):
            for multiplier in _multipliers(b.value, var):
                dead &= _zero(multiplier, channels)
    return dead


def _multipliers(value: relax.Expr, var: relax.Var) -> Iterator[NDArray[np.int32]]:
    """Multipliers by which a reader takes `var`; one, where it reads it otherwise."""
    if ops.is_q4(value, "requantize") and value.args[0].same_as(var):
        yield ops.const_array(value.args[1])
    elif ops.is_q4(value, "add"):
        for side, at in ((0, 2), (1, 4)):
            if value.args[side].same_as(var):
                yield ops.const_array(value.args[at])
    else:
        yield np.ones(1, np.int32)


def _zero(multiplier: NDArray[np.int32], channels: int) -> _Mask:
    """Channels in which a multiplier, [1], [C] or of rank 4, is 0."""
    if multiplier.ndim == 1:
        return np.broadcast_to(multiplier == 0, channels)
    return np.broadcast_to((multiplier == 0).all(axis=(0, 2, 3)), channels)


@tvm.transform.module_pass(opt_level=0, name="DropDeadChannels")
def DropDeadChannels(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Zero the channels that may overflow and count for nothing; without any, `mod` as it is."""
    dead = _dead_channels(mod)
    return _Dropper(mod, dead).run() if dead else mod
