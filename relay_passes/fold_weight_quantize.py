"""FoldWeightQuantize: compute the quantization of parameters at compile time.

A ``q4.quantize`` of a constant becomes its integers, in float32 and in the form that the operator
states. The ``q4.dequantize`` after it stays: QdqToInteger reads the scale from it.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.reference_ops.integer import quantize
from tvm_q4.relay_passes._rewrite import MainRewriter, dataflow_bindings


def _quantizes_constant(value: relax.Expr) -> bool:
    return ops.is_q4(value, "quantize") and isinstance(value.args[0], GenericConst)


class _Folder(MainRewriter):
    def visit(self, binding: relax.VarBinding) -> relax.Expr:
        value = binding.value
        if not _quantizes_constant(value):
            return self.keep(binding)
        arrays = [ops.const_array(a) for a in value.args]
        integers = quantize(*arrays, ops.attrs_of(value))
        return relax.const(integers, str(integers.dtype))


@tvm.transform.module_pass(opt_level=0, name="FoldWeightQuantize")
def FoldWeightQuantize(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Replace quantized constants by integer constants; a module without any is returned as it is.

    Raises
    ------
    InputError
        If a weight is NaN.
    """
    if not any(_quantizes_constant(b.value) for b in dataflow_bindings(mod["main"])):
        return mod
    return _Folder(mod).run()
