"""SplitBias: the bias of a vanishing filter gives its whole output steps to the requantization.

A filter that training made almost vanish has a tiny scale, in whose steps its bias fills int32
(ONNX Runtime's quantizer chooses the scale so that the bias just fits); the sum over the weights
would then overflow, though it cannot move the result by half an output step. ``requantize`` can add
a constant in output steps for each channel, so

    round((acc + b) * m / 2**e)  =  n + round((acc + b - n * 2**e / m) * m / 2**e)

with ``n = round(b * m / 2**e)``. What is left of the bias is rounded to an integer, which is off by
at most half a step of the accumulator: the error that rounding a bias has anyway (numerics.md).
Other layers that may overflow are left to CheckOverflow, which refuses them.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4.quant import INT32_MAX
from tvm_q4.ranges import value_ranges
from tvm_q4.relay_passes._rewrite import MainRewriter, dataflow_bindings, variables
from tvm_q4.relay_passes.check_overflow import layer_bound

_Ints = NDArray[np.int64]


class _Splitter(MainRewriter):
    def __init__(self, mod: tvm.IRModule, parts: dict[relax.Var, tuple[_Ints, _Ints]]) -> None:
        super().__init__(mod)
        self.parts = parts

    def visit(self, binding: relax.VarBinding) -> relax.Expr:
        call = binding.value
        if binding.var in self.parts:
            bias = relax.const(self.parts[binding.var][0].astype(np.int32), "int32")
            return self._rebuilt(call, [*call.args[:2], bias])
        if ops.is_q4(call, "requantize") and call.args[0] in self.parts:
            offset = relax.const(self.parts[call.args[0]][1].astype(np.int32), "int32")
            return self._rebuilt(call, [*call.args[:3], offset])
        return self.keep(binding)

    def _rebuilt(self, call: relax.Call, args: list[relax.Expr]) -> relax.Var:
        kind = str(call.op.name).removeprefix("q4.")
        new = ops.call(kind, [self.remap(a) for a in args], **ops.attrs_of(call))
        return self.emit_q4(new)


def _parts(mod: tvm.IRModule) -> dict[relax.Var, tuple[_Ints, _Ints]]:
    """New bias and offset of each layer that may overflow and that one requantization reads."""
    bindings = dataflow_bindings(mod["main"])
    ranges = value_ranges(mod)
    found = {}
    for b in bindings:
        if not (ops.is_q4(b.value, "conv2d") or ops.is_q4(b.value, "dense")):
            continue
        bound = layer_bound(b.value, ranges[b.value.args[0]])
        if not (bound > INT32_MAX).any():
            continue
        readers = [r.value for r in bindings if b.var in variables(r.value)]
        if len(readers) == 1 and _takes_offset(readers[0]):
            bias, offset = _split(b.value, readers[0], bound)
            if offset is not None:
                found[b.var] = bias, offset
    return found


def _takes_offset(call: relax.Expr) -> bool:
    return ops.is_q4(call, "requantize") and ops.const_array(call.args[1]).ndim == 1


def _split(layer: relax.Call, reader: relax.Call, bound: _Ints) -> tuple[_Ints, _Ints | None]:
    """Bias and offset; None for the latter where no channel is one to split."""
    bias = np.broadcast_to(ops.const_array(layer.args[2]).astype(np.int64), bound.shape).copy()
    m, e = (np.broadcast_to(ops.const_array(a), bound.shape) for a in reader.args[1:3])
    offset = np.zeros(bound.shape, np.int64)
    if len(reader.args) > 3:
        offset += ops.const_array(reader.args[3])
    changed = False
    for o in np.flatnonzero((bound > INT32_MAX) & (m > 0)):
        ratio = Fraction(int(m[o]), 1 << int(e[o]))
        if 2 * (int(bound[o]) - abs(int(bias[o]))) * ratio < 1:
            steps = round(int(bias[o]) * ratio)
            bias[o] -= round(steps / ratio)
            offset[o] += steps
            changed = True
    return bias, offset if changed else None


@tvm.transform.module_pass(opt_level=0, name="SplitBias")
def SplitBias(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Split the biases of channels that may overflow; without any, `mod` as it is."""
    parts = _parts(mod)
    return _Splitter(mod, parts).run() if parts else mod
