"""Renaming functions of a module."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvm_q4._compat import PyExprMutator, mutator, set_type


@mutator
class _Renamed(PyExprMutator):
    def __init__(self, names: dict[str, tvm.ir.GlobalVar]) -> None:
        super().__init__()
        self._names = names

    def visit_global_var_(self, op: tvm.ir.GlobalVar) -> relax.Expr:
        return self._names.get(op.name_hint, op)


def rename(
    functions: dict[tvm.ir.GlobalVar, Any], names: dict[str, str]
) -> dict[tvm.ir.GlobalVar, Any]:
    """Functions under other names, and every reference to them in Relax functions."""
    new = {}
    for gv in functions:
        if gv.name_hint in names:
            new[gv.name_hint] = tvm.ir.GlobalVar(names[gv.name_hint])
            set_type(new[gv.name_hint], gv.ty)
    renamer = _Renamed(new)
    return {
        new.get(gv.name_hint, gv): renamer.visit_expr(f) if isinstance(f, relax.Function) else f
        for gv, f in functions.items()
    }
