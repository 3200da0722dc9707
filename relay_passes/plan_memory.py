"""PlanMemory: put every intermediate tensor of a function at a fixed place of one arena.

Lifetimes are known, since functions are straight lines, so places come from greedy-by-size offset
assignment (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020,
section 5): largest tensors first, each at the lowest offset that is free while it lives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvm_q4.relay_passes._rewrite import dataflow_bindings, substitute, variables
from tvm_q4.schedules.layout import round_up

ALIGNMENT = 64
ARENA_ATTR = "q4.arena_bytes"


@dataclass
class Lifetime:
    """One tensor: bytes, first and last statement that uses it, and the offset it was given."""

    size: int
    first: int
    last: int
    offset: int = 0


def assign_offsets(tensors: list[Lifetime]) -> int:
    """Give each tensor its `offset`, aligned to 64 bytes; returns the arena's size in bytes."""
    placed: list[Lifetime] = []
    total = 0
    for t in sorted(tensors, key=lambda t: (-t.size, t.first)):
        offset = 0
        for other in sorted(placed, key=lambda o: o.offset):
            if other.last < t.first or other.first > t.last:
                continue
            if other.offset - offset >= t.size:
                break
            offset = max(offset, round_up(other.offset + other.size, ALIGNMENT))
        t.offset = offset
        placed.append(t)
        total = max(total, offset + t.size)
    return round_up(total, ALIGNMENT)


def _is_alloc(value: relax.Expr) -> bool:
    return (
        isinstance(value, relax.Call)
        and isinstance(value.op, tvm.ir.Op)
        and value.op.name == "relax.builtin.alloc_tensor"
    )


def _bytes(var: relax.Var) -> int:
    return int(np.prod([int(d) for d in var.ty.shape], dtype=np.int64)) * np.dtype(str(var.ty.dtype)).itemsize


def _lifetimes(func: relax.Function) -> tuple[dict[relax.Var, Lifetime], list[relax.VarBinding]]:
    """Allocations that do not leave the function, with the last statement that reaches them."""
    bindings = dataflow_bindings(func)
    roots: dict[relax.Var, set[relax.Var]] = {}
    lives: dict[relax.Var, Lifetime] = {}
    for i, b in enumerate(bindings):
        if _is_alloc(b.value):
            roots[b.var] = {b.var}
            lives[b.var] = Lifetime(_bytes(b.var), i, i)
            continue
        reached = set().union(*(roots.get(v, set()) for v in variables(b.value)))
        for root in reached:
            lives[root].last = i
        if not isinstance(b.value, relax.Call) or not isinstance(b.value.op, relax.GlobalVar):
            roots[b.var] = reached
    for v in variables(func.body.body):
        for root in roots.get(v, set()):
            lives.pop(root, None)
    return lives, bindings


def _plan(func: relax.Function) -> tuple[relax.Function, int]:
    lives, bindings = _lifetimes(func)
    if not lives:
        return func, 0
    total = assign_offsets(list(lives.values()))
    builder = relax.BlockBuilder()
    params = list(func.params)
    with builder.function("planned", params, attrs=dict(func.attrs) if func.attrs else None):
        storage = builder.emit(
            relax.op.memory.alloc_storage(relax.ShapeExpr([total]), 0, "global", "uint8"), name_hint="arena"
        )
        env: dict[relax.Var, relax.Expr] = {}
        for b in bindings:
            value = substitute(b.value, lambda var: env.get(var, var))
            if b.var in lives:
                value = relax.op.memory.alloc_tensor(
                    storage, lives[b.var].offset, b.value.args[0], str(b.var.ty.dtype)
                )
            env[b.var] = builder.emit(value, name_hint=b.var.name)
        builder.emit_func_output(substitute(func.body.body, lambda var: env.get(var, var)))
    return builder.get()["planned"], total


@tvm.transform.module_pass(opt_level=0, name="PlanMemory")
def PlanMemory(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Plan every Relax function; the module attribute ``q4.arena_bytes`` holds the largest arena."""
    largest = 0
    functions = {}
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function):
            functions[gvar], size = _plan(func)
            largest = max(largest, size)
    new = tvm.IRModule(dict(mod.functions), attrs=mod.attrs)
    for gvar, func in functions.items():
        new.update_func(gvar, func)
    return new.with_attr(ARENA_ATTR, largest)
