"""Value ranges of integer tensors, as the operators declare them."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4.meta import model_meta
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange
from tvm_q4.relay_passes._rewrite import dataflow_bindings, dtype_of, op_name

_INT32 = IntRange(INT32_MIN, INT32_MAX)


def value_ranges(mod: tvm.IRModule) -> dict[str | relax.Var, IntRange]:
    """Range of every integer tensor of ``main``, by its variable and, for q4 operators, its name.

    Ranges are the declared ones: ``qmin``..``qmax`` of a quantizer, ``lo``..``hi`` of a
    requantization or an add, all of int32 for accumulators and sums. Pools and data movement hand
    on the range of what they read, with the padded value where they pad.
    """
    ranges: dict[str | relax.Var, IntRange] = {}
    for param in mod["main"].params:
        if dtype_of(param).startswith(("int", "uint")):
            ranges[param] = _input_range(mod, param)
    for b in dataflow_bindings(mod["main"]):
        if dtype_of(b.var).startswith(("int", "uint")):
            ranges[b.var] = _range(b, ranges)
            if ops.is_q4(b.value):
                ranges[str(b.value.attrs["name"])] = ranges[b.var]
    return ranges


def _input_range(mod: tvm.IRModule, param: relax.Var) -> IntRange:
    stored = model_meta(mod).get("input_range")
    limits = np.iinfo(dtype_of(param))
    lo, hi = (limits.min, limits.max) if stored is None else stored
    return IntRange(int(lo), int(hi))


def _range(binding: relax.VarBinding, ranges: dict[str | relax.Var, IntRange]) -> IntRange:
    value, dtype = binding.value, dtype_of(binding.var)
    if isinstance(value, relax.Var):
        return ranges[value]
    if ops.is_q4(value):
        declared = _declared(value)
        if declared is not None:
            return declared
    if dtype == "int32" and not _moves(value):
        return _INT32
    read = [ranges[a] for a in getattr(value, "args", []) if a in ranges]
    if not read:
        limits = np.iinfo(dtype)
        return IntRange(int(limits.min), int(limits.max))
    lo, hi = min(r.lo for r in read), max(r.hi for r in read)
    if op_name(value) == "relax.nn.pad":
        fill = int(value.attrs.pad_value)
        lo, hi = min(lo, fill), max(hi, fill)
    return IntRange(lo, hi)


def _declared(call: relax.Call) -> IntRange | None:
    a = call.attrs
    if "lo" in a:
        return IntRange(int(a["lo"]), int(a["hi"]))
    return IntRange(int(a["qmin"]), int(a["qmax"])) if ops.is_q4(call, "quantize") else None


def _moves(value: relax.Expr) -> bool:
    """Whether the result holds only values of the operands (and padding)."""
    return not ops.is_q4(value) or any(ops.is_q4(value, k) for k in ("max_pool2d", "concat"))
