"""FoldReshape: a reshape of a reshape reads the first one's input; one that changes nothing goes.

Exporters of channels-last networks write [N, C, 1, 1] as [N, 1, 1, C] before they flatten it, and
quantizers put an identical quantization between both.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_q4.relay_passes._rewrite import MainRewriter, op_name, shape_of
from tvm_q4.relay_passes.qdq_rules.movement import RESHAPES


class _Folder(MainRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.sources: dict[relax.Expr, relax.Expr] = {}
        self.changed = False

    def visit(self, binding: relax.VarBinding) -> relax.Expr:
        if op_name(binding.value) not in RESHAPES:
            return self.keep(binding)
        x, shape = self.remap(binding.value.args[0]), shape_of(binding.var)
        source = self.sources.get(x, x)
        if shape_of(source) == shape:
            self.changed = True
            return source
        if source.same_as(x):
            new = self.keep(binding)
        else:
            self.changed = True
            new = self.emit(relax.op.reshape(source, shape), str(binding.var.name))
        self.sources[new] = source
        return new


@tvm.transform.module_pass(opt_level=0, name="FoldReshape")
def FoldReshape(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Join reshapes; a module in which none can be joined is returned as it is."""
    folder = _Folder(mod)
    new = folder.run()
    return new if folder.changed else mod
