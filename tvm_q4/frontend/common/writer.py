"""The Relax function that an importer writes, and the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from tvm_q4.frontend.common.values import Value


class TensorNames:
    """Hands out unique names."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._quantized: set[str] = set()

    def layer(self, stem: str) -> str:
        """Unique name of a layer; no quantization takes it, since it is its accumulator's."""
        name = self.unique(stem)
        self._quantized.add(name)
        return name

    def unique(self, stem: str, suffix: str = "") -> str:
        """``stem + suffix``, with ``_1``, ``_2`` after the stem where it is taken."""
        name, count = stem + suffix, 0
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}{suffix}"
        self._taken.add(name)
        return name

    def quantized(self, base: str) -> str:
        """Name of a quantization of tensor `base`: `base` itself, then ``base.q2``, ``base.q3``."""
        name, count = base, 1
        while name in self._quantized:
            count += 1
            name = f"{base}.q{count}"
        self._quantized.add(name)
        return name


def _identifier(label: str) -> str:
    """Variable name that TVMScript prints unchanged."""
    return re.sub(r"\W", "_", label)


class FunctionWriter:
    """Collects the bindings of one Relax function; part of `values.ImporterFace`.

    Parameters
    ----------
    names : TensorNames
    """

    def __init__(self, names: TensorNames) -> None:
        self._names = names
        self._builder = relax.BlockBuilder()
        self._bindings: list[relax.VarBinding] = []
        self._shared: dict[tuple[Any, ...], Value] = {}

    def emit(self, expr: relax.Expr, label: str) -> relax.Var:
        """Bind `expr` under the name `label`, which calls carry as their span's source name too."""
        if isinstance(expr, relax.Call):
            span = tvm.ir.Span(tvm.ir.SourceName(label), 0, 0, 0, 0)
            expr = relax.Call(expr.op, expr.args, expr.attrs, expr.ty_args, span)
        expr = self._builder.normalize(expr)
        var = relax.DataflowVar(_identifier(label), expr.ty)
        self._bindings.append(relax.VarBinding(var, expr))
        return var

    def quantized_name(self, base: str) -> str:
        """Unique name of a quantization of the tensor `base`."""
        return self._names.quantized(base)

    def unique(self, stem: str, suffix: str = "") -> str:
        """``stem + suffix``, with a counter where it is taken."""
        return self._names.unique(stem, suffix)

    def shared(self, key: tuple[Any, ...], make: Callable[[], Value]) -> Value:
        """The value made before under `key`, else what `make` makes."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def module(self, parameter: relax.Var, result: relax.Expr) -> tvm.IRModule:
        """The module with one function ``main(parameter)`` that returns `result`.

        The builder's scopes are not used: they print a warning where a node is refused.
        """
        out = relax.Var("logits", result.ty)
        block = relax.DataflowBlock([*self._bindings, relax.VarBinding(out, result)])
        function = relax.Function([parameter], relax.SeqExpr([block], out), result.ty)
        mod = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        return relax.transform.Normalize()(mod)  # gives the body its type
