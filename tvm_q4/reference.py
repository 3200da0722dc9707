"""Reference executor: runs a module at any stage of the pipeline in NumPy, exactly.

It is the oracle of every pass, kernel and of ``verify``. Integer operators never wrap: what would
overflow int32 is an error. Float operators (a stage-1 module, a float island) run in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_q4._compat import GenericConst, tirx
from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.ops import attrs_of, const_array
from tvm_q4.reference_ops.integer import Q4_OPS
from tvm_q4.reference_ops.island import ISLAND_OPS
from tvm_q4.reference_ops.movement import MOVEMENT_OPS

Value = Any
"""An ndarray, or a tuple of values."""


class ReferenceExecutor:
    """Runs ``main`` of a module and the private Relax functions that it calls.

    Parameters
    ----------
    mod : tvm.IRModule
        Stage 1 (float operators between ``q4.quantize`` and ``q4.dequantize``), 2 (integer) or 3
        (fused functions), with static shapes.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        self._mod = mod
        self._main = mod["main"]
        self._constants: dict[Any, NDArray] = {}

    def run(self, x: NDArray) -> Value:
        """Result of ``main``: an array, or a tuple of arrays.

        Raises
        ------
        InputError
            If `x` has another shape or dtype than ``main`` takes, or NaN reaches a quantizer.
        NumericsError
            If an integer value leaves int32.
        UnsupportedError
            If the module holds an operator that has no definition here.
        """
        return self._start(x, {}, {})

    def trace(
        self, x: NDArray, overrides: Mapping[str, NDArray] | None = None
    ) -> dict[str, NDArray]:
        """Every q4 tensor by its name.

        Parameters
        ----------
        x : ndarray
            As for `run`.
        overrides : mapping of str to ndarray, optional
            Values that everything downstream reads in place of the named tensors. The result still
            holds what was computed under those names.
        """
        return self.run_and_trace(x, overrides)[1]

    def run_and_trace(
        self, x: NDArray, overrides: Mapping[str, NDArray] | None = None
    ) -> tuple[Value, dict[str, NDArray]]:
        """Results of `run` and `trace` from one pass through the network."""
        tensors: dict[str, NDArray] = {}
        result = self._start(x, dict(overrides or {}), tensors)
        unknown = sorted(set(overrides or {}) - set(tensors))
        if unknown:
            msg = f"overrides name tensors that the module does not make: {', '.join(unknown)}"
            raise InputError(msg)
        return result, tensors

    def run_function(self, name: str, args: Sequence[NDArray]) -> Value:
        """Result of one Relax function of the module, such as a fused layer.

        Raises
        ------
        NumericsError, UnsupportedError
            As `run` does.
        """
        function = self.callee(self._mod.get_global_var(name))
        return _Frame(self, {}, {}).function(function, list(args))

    def _start(
        self, x: NDArray, overrides: dict[str, NDArray], tensors: dict[str, NDArray]
    ) -> Value:
        (param,) = self._main.params
        shape, dtype = [int(d) for d in param.ty.shape], str(param.ty.dtype)
        if not isinstance(x, np.ndarray) or list(x.shape) != shape or str(x.dtype) != dtype:
            found = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
            msg = f"input {param.name!r} must be a NumPy array {dtype} {shape}, found {found}"
            raise InputError(msg)
        return _Frame(self, overrides, tensors).function(self._main, [x])

    def constant(self, expr: relax.Expr) -> NDArray:
        """NumPy copy of a constant, made once."""
        if expr not in self._constants:
            self._constants[expr] = const_array(expr)
        return self._constants[expr]

    def callee(self, gvar: tvm.ir.GlobalVar) -> relax.Function:
        """The Relax function that `gvar` names."""
        func = self._mod[gvar]
        if not isinstance(func, relax.Function):
            msg = (
                f"call of {gvar.name_hint!r}, a {type(func).__name__}: the reference executor "
                "runs Relax only"
            )
            raise UnsupportedError(msg)
        return func


class _Frame:
    """One run: the overrides, and the tensors recorded so far."""

    def __init__(
        self, owner: ReferenceExecutor, overrides: dict[str, NDArray], tensors: dict[str, NDArray]
    ) -> None:
        self.owner = owner
        self.overrides = overrides
        self.tensors = tensors

    def function(self, func: relax.Function, args: list[Value]) -> Value:
        env: dict[relax.Var, Value] = dict(zip(func.params, args, strict=True))
        for block in func.body.blocks:
            for binding in block.bindings:
                if not isinstance(binding, relax.VarBinding):
                    msg = (
                        f"binding {binding.var.name!r} is a {type(binding).__name__}; only "
                        "plain bindings run"
                    )
                    raise UnsupportedError(msg)
                env[binding.var] = self.value(binding.value, env)
        return self.value(func.body.body, env)

    def value(self, expr: relax.Expr, env: dict[relax.Var, Value]) -> Value:
        if isinstance(expr, relax.Var):
            return env[expr]
        if isinstance(expr, relax.Call):
            return self.call(expr, [self.value(a, env) for a in expr.args])
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(f, env) for f in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.value(expr.tuple_value, env)[expr.index]
        if isinstance(expr, relax.ShapeExpr):
            return tuple(int(d) for d in expr.values)
        if isinstance(expr, (tirx.IntImm, tirx.FloatImm)):
            return expr.value
        if isinstance(expr, GenericConst):
            return self.owner.constant(expr)
        msg = (
            f"expression of kind {type(expr).__name__} has no definition in the reference executor"
        )
        raise UnsupportedError(msg)

    def call(self, call: relax.Call, args: list[Value]) -> Value:
        if isinstance(call.op, tvm.ir.GlobalVar):
            return self.function(self.owner.callee(call.op), args)
        name = call.op.name if isinstance(call.op, tvm.ir.Op) else str(call.op)
        if name in Q4_OPS:
            return self.named(Q4_OPS[name](*args, attrs_of(call)), str(call.attrs["name"]))
        if name in MOVEMENT_OPS:
            return MOVEMENT_OPS[name](call, *args)
        if name in ISLAND_OPS:
            integers = [a for a in args if isinstance(a, np.ndarray) and a.dtype != np.float32]
            if not integers:
                return ISLAND_OPS[name](call, *args)
            msg = (
                f"operator {name} on {integers[0].dtype} {list(integers[0].shape)}: only "
                "float32 is defined"
            )
            raise UnsupportedError(msg)
        shapes = ", ".join(f"{a.dtype} {list(a.shape)}" for a in args if isinstance(a, np.ndarray))
        msg = f"operator {name} on ({shapes}) has no definition in the reference executor"
        raise UnsupportedError(msg)

    def named(self, computed: NDArray, name: str) -> NDArray:
        self.tensors[name] = computed
        if name not in self.overrides:
            return computed
        value = np.asarray(self.overrides[name])
        if value.shape != computed.shape or value.dtype != computed.dtype:
            msg = (
                f"override of {name!r} is {value.dtype} {list(value.shape)}, "
                f"the tensor is {computed.dtype} {list(computed.shape)}"
            )
            raise InputError(msg)
        return value
