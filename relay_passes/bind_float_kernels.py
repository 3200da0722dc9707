"""BindFloatKernels: make TVM's float kernels of a CUDA module belong to one family of devices.

They get a default GPU schedule, the family's target, and its suffix, so that modules of several
families can be put into one.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.target import Target

from tvm_q4._compat import PyExprMutator, dlight, mutator, tirx
from tvm_q4.schedules.cuda.kernel import CUDA_ATTR


@mutator
class _Renamed(PyExprMutator):
    def __init__(self, names: dict[str, tvm.ir.GlobalVar]) -> None:
        super().__init__()
        self._names = names

    def visit_global_var_(self, op: tvm.ir.GlobalVar) -> relax.Expr:
        return self._names.get(op.name_hint, op)


def bind_float_kernels(mod: tvm.IRModule, target: Target, suffix: str) -> tvm.IRModule:
    """Schedule, bind and rename every kernel that is not ours.

    Parameters
    ----------
    mod : tvm.IRModule
        After ``LegalizeOps``.
    target : tvm.target.Target
        The family's.
    suffix : str
        Ends the new names.
    """
    names = {
        gv.name_hint: tvm.ir.GlobalVar(gv.name_hint + suffix)
        for gv, func in mod.functions.items()
        if isinstance(func, tirx.PrimFunc) and CUDA_ATTR not in (func.attrs or {})
    }
    if not names:
        return mod
    with target:
        mod = dlight.ApplyDefaultSchedule(dlight.gpu.Reduction(), dlight.gpu.Fallback())(mod)
    renamer = _Renamed(names)
    functions = {}
    for gv, func in mod.functions.items():
        if gv.name_hint in names:
            functions[names[gv.name_hint]] = func.with_attr("target", target)
        else:
            functions[gv] = renamer.visit_expr(func) if isinstance(func, relax.Function) else func
    return tvm.IRModule(functions, attrs=mod.attrs)
