"""QdqToInteger: from float operators between quantize and dequantize to q4 operators on integers.

One walk over ``main`` gives every float tensor that derives from a ``q4.dequantize`` its meaning in
integers (`qdq_rules.real`). A ``q4.quantize`` asks for that meaning at a scale, and what it takes
is written then: requantizations, residual adds, pools on the narrower side. What no rule
understands stays float, with a dequantize before it and the model's own quantize after it.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.meta import with_meta
from tvm_q4.relay_passes._rewrite import (
    MainRewriter,
    Names,
    has_op,
    names_in,
    op_name,
    shape_of,
    tensor_name,
)
from tvm_q4.relay_passes.qdq_rules.emit import IntegerWriter
from tvm_q4.relay_passes.qdq_rules.real import Constant, Real, Tensor
from tvm_q4.relay_passes.qdq_rules.recognize import RULES, quantizer


class QdqRewriter(MainRewriter):
    """Interprets each binding in terms of integers and writes what is asked for."""

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.names = Names(names_in(mod))
        self.writer = IntegerWriter(self, self.names)
        self._tensor_names = {p: str(p.name) for p in self.main.params}

    def visit(self, binding: relax.VarBinding) -> relax.Expr | Real:
        """The meaning of a binding, or the binding itself where it has none in integers."""
        name = op_name(binding.value)
        self._tensor_names[binding.var] = tensor_name(binding)
        if name == "q4.quantize":
            return self._quantize(binding)
        real = RULES[name](self, binding) if name in RULES else None
        return self._kept(binding) if real is None else real

    def _quantize(self, binding: relax.VarBinding) -> relax.Expr:
        real, wanted = self.operand(binding.value.args[0]), quantizer(binding.value)
        if isinstance(real, Real) and not isinstance(real, Constant) and wanted is not None:
            integers = self.writer.quantize(real, wanted, tensor_name(binding))
            if integers is not None:
                return integers
        return self._kept(binding)

    def _kept(self, binding: relax.VarBinding) -> relax.Expr:
        if ops.is_q4(binding.value):
            self.names.take(tensor_name(binding))
        return self.keep(binding)

    def operand(self, expr: relax.Expr) -> Real | relax.Expr | None:
        """What is known of an operand: its meaning, a parameter, or only its expression."""
        if isinstance(expr, GenericConst):
            unnamed = relax.VarBinding(relax.Var("constant", expr.ty), expr)
            return Constant(origin=unnamed, shape=shape_of(expr), values=ops.const_array(expr))
        return self.env[expr] if isinstance(expr, relax.Var) else None

    def integer_operand(self, expr: relax.Expr, bits: int) -> Tensor | None:
        """The operand as an exact integer tensor of at most `bits` bits, or None."""
        real = self.operand(expr)
        if (
            not isinstance(real, Real)
            or isinstance(real, Constant)
            or self.writer.width(real) > bits
        ):
            return None
        return self.writer.exact(real)

    def name_of(self, var: relax.Var) -> str:
        """Name of the tensor that an old variable holds."""
        return self._tensor_names[var]

    def resolve(self, var: relax.Var) -> relax.Expr:
        """The new expression for an old variable; float tensors are written when they are read."""
        value = self.env[var]
        return self.writer.to_float(value) if isinstance(value, Real) else value


@tvm.transform.module_pass(opt_level=0, name="QdqToInteger")
def QdqToInteger(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Rewrite ``main`` to integers; a module without ``q4.dequantize`` is returned as it is.

    Residual adds in the form ``two_sided`` are recorded as the module's fact ``two_sided_adds``, a
    list of names with reasons.

    Raises
    ------
    NumericsError
        If a bias does not fit int32 or a ratio of scales is not below 2**31.
    """
    if not has_op(mod, "q4.dequantize"):
        return mod
    rewriter = QdqRewriter(mod)
    new = rewriter.run()
    return (
        with_meta(new, two_sided_adds=rewriter.writer.two_sided)
        if rewriter.writer.two_sided
        else new
    )
