"""PlanMemory: put every intermediate tensor of a function at a fixed place of one arena.

Kernels that TVM made for float operators take no tensor that starts inside a storage: what they
read or write gets storages of its own beside the arena, shared where lifetimes allow.

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
from tvm_q4.schedules.kernel import KERNEL_ATTR
from tvm_q4.schedules.layout import round_up

ALIGNMENT = 64
ARENA_ATTR = "q4.arena_bytes"


@dataclass
class Lifetime:
    """One tensor: bytes, first and last statement that uses it, and the place it was given.

    `offset` counts from the arena's start; outside the arena it is the index of a storage.
    """

    size: int
    first: int
    last: int
    offset: int = 0
    in_arena: bool = True


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


def assign_storages(tensors: list[Lifetime]) -> list[int]:
    """Give each tensor the index of a storage that is free while it lives; returns their sizes."""
    sizes: list[int] = []
    free_from: list[int] = []
    for t in sorted(tensors, key=lambda t: t.first):
        usable = [i for i, free in enumerate(free_from) if free < t.first]
        if usable:
            t.offset = max(usable, key=lambda i: sizes[i])
        else:
            t.offset = len(sizes)
            sizes.append(0)
            free_from.append(0)
        sizes[t.offset] = max(sizes[t.offset], round_up(t.size, ALIGNMENT))
        free_from[t.offset] = t.last
    return sizes


def _is_alloc(value: relax.Expr) -> bool:
    return (
        isinstance(value, relax.Call)
        and isinstance(value.op, tvm.ir.Op)
        and value.op.name == "relax.builtin.alloc_tensor"
    )


def _bytes(var: relax.Var) -> int:
    return (
        int(np.prod([int(d) for d in var.ty.shape], dtype=np.int64))
        * np.dtype(str(var.ty.dtype)).itemsize
    )


def _takes_offsets(mod: tvm.IRModule, value: relax.Expr) -> bool:
    """Whether a call accepts tensors inside a storage: ours do, and what is no kernel call."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, relax.GlobalVar):
        return True
    callee = mod[value.op]
    return bool(callee.attrs) and KERNEL_ATTR in callee.attrs


def _lifetimes(
    mod: tvm.IRModule, func: relax.Function
) -> tuple[dict[relax.Var, Lifetime], list[relax.VarBinding]]:
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
            lives[root].in_arena &= _takes_offsets(mod, b.value)
        if not isinstance(b.value, relax.Call) or not isinstance(b.value.op, relax.GlobalVar):
            roots[b.var] = reached
    for v in variables(func.body.body):
        for root in roots.get(v, set()):
            lives.pop(root, None)
    return lives, bindings


def _plan(mod: tvm.IRModule, func: relax.Function) -> tuple[relax.Function, int]:
    """The function with planned memory, and the bytes that it needs."""
    lives, bindings = _lifetimes(mod, func)
    if not lives:
        return func, 0
    sizes = [assign_offsets([t for t in lives.values() if t.in_arena])]
    sizes += assign_storages([t for t in lives.values() if not t.in_arena])
    builder = relax.BlockBuilder()
    attrs = dict(func.attrs) if func.attrs else None
    with builder.function("planned", list(func.params), attrs=attrs):
        storages = [builder.emit(_storage(size)) if size else None for size in sizes]
        env: dict[relax.Var, relax.Expr] = {}
        for b in bindings:
            value = substitute(b.value, lambda var: env.get(var, var))
            if b.var in lives:
                t = lives[b.var]
                storage, offset = (
                    (storages[0], t.offset) if t.in_arena else (storages[1 + t.offset], 0)
                )
                shape, dtype = b.value.args[0], str(b.var.ty.dtype)
                value = relax.op.memory.alloc_tensor(storage, offset, shape, dtype)
            env[b.var] = builder.emit(value, name_hint=b.var.name)
        builder.emit_func_output(substitute(func.body.body, lambda var: env.get(var, var)))
    return builder.get()["planned"], sum(sizes)


def _storage(size: int) -> relax.Call:
    return relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8")


@tvm.transform.module_pass(opt_level=0, name="PlanMemory")
def PlanMemory(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Plan every Relax function; the attribute ``q4.arena_bytes`` is what the largest one needs."""
    largest = 0
    functions = {}
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function):
            functions[gvar], size = _plan(mod, func)
            largest = max(largest, size)
    new = tvm.IRModule(dict(mod.functions), attrs=mod.attrs)
    for gvar, func in functions.items():
        new.update_func(gvar, func)
    return new.with_attr(ARENA_ATTR, largest)
