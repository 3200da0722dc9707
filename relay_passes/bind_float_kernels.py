"""BindFloatKernels: make TVM's float kernels of a CUDA module belong to one family of devices.

They get a default GPU schedule, the family's target, and its suffix, so that modules of several
families can be put into one.
"""

from __future__ import annotations

import tvm
from tvm.target import Target

from tvm_q4._compat import dlight, tirx
from tvm_q4.relay_passes._rename import rename
from tvm_q4.schedules.cuda.kernel import CUDA_ATTR


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
    floats = {
        gv.name_hint
        for gv, func in mod.functions.items()
        if isinstance(func, tirx.PrimFunc) and CUDA_ATTR not in (func.attrs or {})
    }
    if not floats:
        return mod
    with target:
        mod = dlight.ApplyDefaultSchedule(dlight.gpu.Reduction(), dlight.gpu.Fallback())(mod)
    functions = {
        gv: func.with_attr("target", target) if gv.name_hint in floats else func
        for gv, func in mod.functions.items()
    }
    renamed = rename(functions, {name: name + suffix for name in floats})
    return tvm.IRModule(renamed, attrs=mod.attrs)
