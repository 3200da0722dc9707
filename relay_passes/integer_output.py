"""IntegerOutput: return the last layer's int32 accumulators instead of float logits.

The scales by which they would have been multiplied (or divided), and zero points, go into the
module's facts, and so into a library's metadata.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import TensorType
from tvm_q4.errors import UnsupportedError
from tvm_q4.meta import with_meta
from tvm_q4.relay_passes._rewrite import dataflow_bindings


@tvm.transform.module_pass(opt_level=0, name="IntegerOutput")
def IntegerOutput(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Drop the q4.dequantize that makes the result; an integer result is returned as it is.

    Raises
    ------
    UnsupportedError
        If the model's last operator is a float one, or it returns several tensors.
    """
    main = mod["main"]
    bindings = dataflow_bindings(main)
    values = {b.var: b.value for b in bindings}
    result, aliases = main.body.body, set()
    while isinstance(values.get(result), relax.Var):
        aliases.add(result)
        result = values[result]
    value = values.get(result)
    if not isinstance(result.ty, TensorType):
        raise UnsupportedError(
            "the model returns several tensors; tvm-q4 compiles models with one output"
        )
    if str(result.ty.dtype) != "float32":
        return mod
    if not ops.is_q4(value, "dequantize"):
        op = value.op.name if isinstance(value, relax.Call) else type(value).__name__
        msg = f"the last operator is the float {op}; --integer-output needs an integer last layer"
        raise UnsupportedError(msg)
    kept = [b for b in bindings if b.var not in {*aliases, result}]
    accumulator = value.args[0]
    output = relax.Var("output", accumulator.ty)
    block = relax.DataflowBlock([*kept, relax.VarBinding(output, accumulator)])
    body = relax.BlockBuilder().normalize(relax.SeqExpr([block], output))
    func = relax.Function(list(main.params), body, accumulator.ty, attrs=main.attrs)
    new = tvm.IRModule({"main": func}, attrs=mod.attrs)
    scale = ops.const_array(value.args[1]).ravel().tolist()
    zero = ops.const_array(value.args[2]).ravel().tolist()
    facts = {
        "output_scale": scale,
        "output_zero_point": zero,
        "output_scale_form": str(value.attrs["form"]),
    }
    return with_meta(new, **facts)
