"""Modules that end early, to see what a library otherwise keeps in registers."""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_q4.relay_passes._rewrite import dataflow_bindings, tensor_name, variables


def ending_at(mod: tvm.IRModule, name: str) -> tvm.IRModule:
    """`mod` with the tensor `name` as its result, and nothing that this one does not need."""
    main = mod["main"]
    bindings = dataflow_bindings(main)
    (end,) = [i for i, b in enumerate(bindings) if tensor_name(b) == name]
    value = bindings[end].value
    needed, kept = set(variables(value)), []
    for binding in reversed(bindings[:end]):
        if binding.var in needed:
            needed.update(variables(binding.value))
            kept.append(binding)
    out = relax.Var("output", bindings[end].var.ty)
    block = relax.DataflowBlock([*reversed(kept), relax.VarBinding(out, value)])
    body = relax.SeqExpr([block], out)
    func = relax.Function(list(main.params), body, out.ty, attrs=main.attrs)
    return tvm.IRModule({"main": func}, attrs=mod.attrs)
