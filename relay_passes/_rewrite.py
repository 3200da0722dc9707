"""Rebuild ``main`` of a module binding by binding: the loop that graph passes share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import TensorType


def dataflow_bindings(func: relax.Function) -> list[relax.VarBinding]:
    """Bindings of a straight-line function, in order."""
    return [b for block in func.body.blocks for b in block.bindings]


@contextmanager
def function_scope(
    builder: relax.BlockBuilder, name: str, params: Sequence[relax.Var]
) -> Iterator[None]:
    """``builder.function`` for code that may refuse a model.

    TVM writes a warning of its own to standard error about a block that an exception leaves open.
    """
    with builder.function(name, list(params)):
        try:
            yield
        except BaseException:
            builder._end_block()
            raise


def op_name(expr: relax.Expr) -> str:
    """Name of the operator that `expr` calls; an empty string for anything else."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name)
    return ""


def has_op(mod: tvm.IRModule, *names: str) -> bool:
    """Whether ``main`` calls one of the operators `names`."""
    return any(op_name(b.value) in names for b in dataflow_bindings(mod["main"]))


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """Static shape of a tensor expression."""
    return tuple(int(d) for d in expr.ty.shape)


def dtype_of(expr: relax.Expr) -> str:
    """Element type of a tensor expression; an empty string for what is no tensor."""
    return str(expr.ty.dtype) if isinstance(expr.ty, TensorType) else ""


def tensor_name(binding: relax.VarBinding) -> str:
    """Name of the tensor that a binding makes: the q4 operator's, the span's or the variable's."""
    value = binding.value
    if ops.is_q4(value):
        return str(value.attrs["name"])
    if isinstance(value, relax.Call) and value.span is not None:
        return str(value.span.source_name.name)
    return str(binding.var.name)


def layer_name(weight: str, layer: relax.VarBinding) -> str:
    """Name of a layer: its weight's (``<layer>.weight.dq``), else that of its own tensor."""
    suffix = ".weight.dq"
    return weight.removesuffix(suffix) if weight.endswith(suffix) else tensor_name(layer)


def variables(expr: relax.Expr) -> Iterator[relax.Var]:
    """Variables that an expression reads, with repeats, in order."""
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, relax.Tuple):
        for field in expr.fields:
            yield from variables(field)
    elif isinstance(expr, relax.TupleGetItem):
        yield from variables(expr.tuple_value)
    elif isinstance(expr, relax.Call):
        for arg in expr.args:
            yield from variables(arg)


def substitute(expr: relax.Expr, replacement: Callable[[relax.Var], relax.Expr]) -> relax.Expr:
    """`expr` with every variable replaced by what `replacement` gives for it."""
    if isinstance(expr, relax.Var):
        return replacement(expr)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(f, replacement) for f in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(substitute(expr.tuple_value, replacement), expr.index)
    if isinstance(expr, relax.Call):
        args = [substitute(a, replacement) for a in expr.args]
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args, expr.span)
    return expr


def use_counts(func: relax.Function) -> dict[relax.Var, int]:
    """How often each variable of `func` is read, the result counted too."""
    counts: dict[relax.Var, int] = {}

    for expr in [*(b.value for b in dataflow_bindings(func)), func.body.body]:
        for var in variables(expr):
            counts[var] = counts.get(var, 0) + 1
    return counts


def _live(bindings: list[relax.VarBinding]) -> list[relax.VarBinding]:
    """`bindings` without those that the last one does not need."""
    needed = {bindings[-1].var}
    kept = []
    for b in reversed(bindings):
        if b.var in needed:
            needed.update(variables(b.value))
            kept.append(b)
    return kept[::-1]


class MainRewriter:
    """Walks ``main`` in order and writes a new one; subclasses override `visit`.

    `env` maps each old variable to what stands for it: an expression of the new function, or
    whatever a subclass understands and `resolve` turns into one when it is read.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        self.mod = mod
        self.main = mod["main"]
        self.params = [relax.Var(p.name, p.ty) for p in self.main.params]
        self.env: dict[relax.Var, Any] = dict(zip(self.main.params, self.params, strict=True))
        self.definitions: dict[relax.Var, relax.Expr] = {}
        self._builder = relax.BlockBuilder()
        self._bindings: list[relax.VarBinding] = []

    def run(self) -> tvm.IRModule:
        """The module with the new ``main``; other functions and attributes are kept."""
        for binding in dataflow_bindings(self.main):
            self.env[binding.var] = self.visit(binding)
            self.definitions[binding.var] = binding.value
        result = self.remap(self.main.body.body)
        if not isinstance(result, relax.Var):
            result = self.emit(result, "result")
        out = relax.Var(str(getattr(self.main.body.body, "name", "result")), result.ty)
        block = relax.DataflowBlock(_live([*self._bindings, relax.VarBinding(out, result)]))
        body = self._builder.normalize(relax.SeqExpr([block], out))
        func = relax.Function(self.params, body, out.ty)
        new = self.mod.clone()
        new.update_func(new.get_global_var("main"), func.with_attrs(dict(self.main.attrs)))
        return new

    def visit(self, binding: relax.VarBinding) -> Any:
        """What stands for the binding's variable; here, the same expression over new operands."""
        return self.keep(binding)

    def keep(self, binding: relax.VarBinding) -> relax.Expr:
        """The binding as it is, over new operands."""
        value = self.remap(binding.value)
        return value if isinstance(value, relax.Var) else self.emit(value, str(binding.var.name))

    def resolve(self, var: relax.Var) -> relax.Expr:
        """Expression of the new function that stands for an old variable."""
        return self.env[var]

    def remap(self, expr: relax.Expr) -> relax.Expr:
        """`expr` with old variables replaced by what stands for them."""
        return substitute(expr, self.resolve)

    def emit(self, expr: relax.Expr, hint: str) -> relax.Var:
        """Bind `expr` to a new variable named after `hint`."""
        expr = self._builder.normalize(expr)
        var = relax.DataflowVar(re.sub(r"\W", "_", hint), expr.ty)
        self._bindings.append(relax.VarBinding(var, expr))
        return var

    def emit_q4(self, call: relax.Call) -> relax.Var:
        """Bind a q4 call to a variable named after its tensor."""
        return self.emit(call, str(call.attrs["name"]))


class Names:
    """Unique names of the tensors of the new module.

    Parameters
    ----------
    reserved : iterable of str
        Names that only `take` may hand out: those that the module already uses.
    """

    def __init__(self, reserved: set[str]) -> None:
        self._reserved = set(reserved)
        self._used: set[str] = set()

    def take(self, name: str) -> str:
        """`name` itself where no tensor has it yet, else ``name.out``, else that with a number."""
        if name not in self._used:
            self._used.add(name)
            return name
        return self.derive(f"{name}.out")

    def derive(self, name: str) -> str:
        """A name that nothing else has or will ask for: `name`, numbered where it is taken."""
        candidate, count = name, 0
        while candidate in self._used or candidate in self._reserved:
            count += 1
            candidate = f"{name}_{count}"
        self._used.add(candidate)
        return candidate


def names_in(mod: tvm.IRModule) -> set[str]:
    """Names of all tensors that ``main`` makes."""
    return {tensor_name(b) for b in dataflow_bindings(mod["main"])}
