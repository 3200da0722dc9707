"""LowerToTIR: replace every fused layer and integer data movement by a call of a TensorIR kernel.

Layers of one signature share a kernel. Weights are packed here, as the chosen rule asks. Besides
``main``, which takes float32, a ``main_quantized`` is made that takes the quantized input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from tvm_q4 import ops
from tvm_q4._compat import GenericConst, TensorType
from tvm_q4.errors import UnsupportedError
from tvm_q4.meta import model_meta
from tvm_q4.quant import IntRange
from tvm_q4.relay_passes._rewrite import (
    dataflow_bindings,
    function_scope,
    op_name,
    shape_of,
    substitute,
    variables,
)
from tvm_q4.relay_passes.assign_layout import Placement, assign_layouts, is_integer
from tvm_q4.schedules.layer import Layer, Op, Tensor, layer_from_function
from tvm_q4.schedules.layout import PLAIN, Layout, packed, shape4
from tvm_q4.schedules.rule import Choice, ScheduleRule, select
from tvm_q4.schedules.signature import kernel_name, signature
from tvm_q4.tuning_logs.records import Record

Tuned = Callable[[str], Record | None]


@dataclass
class LoweredCall:
    """One kernel call of the network, in execution order."""

    layer: Layer
    signature: str
    kernel: str
    choice: Choice


@dataclass
class Lowered:
    """Result of `lower_to_tir`: the module, the fused one that it was, what each call runs."""

    mod: tvm.IRModule
    fused: tvm.IRModule
    calls: list[LoweredCall] = field(default_factory=list)
    weight_bytes: dict[str, int] = field(default_factory=dict)


class _Lowering:
    """Rewrites one function body; kernels and constants are shared through `kernels`."""

    def __init__(
        self,
        mod: tvm.IRModule,
        target: Target,
        rules: list[ScheduleRule],
        tuned: Tuned,
        suffix: str,
    ) -> None:
        self.mod, self.target, self.rules, self.tuned = mod, target, rules, tuned
        self.suffix = suffix
        self.placements = assign_layouts(mod)
        self.builder = relax.BlockBuilder()
        self.choices: dict[str, Choice] = {}
        self.kernels: dict[str, relax.GlobalVar] = {}
        self.constants: dict[str, list[GenericConst]] = {}
        self.result = Lowered(mod, mod)
        self.env: dict[relax.Var, relax.Expr] = {}
        self.tensors: dict[relax.Var, Tensor] = {}
        self.record = True

    def function(self, name: str, quantized: bool) -> None:
        """Emit ``main`` or ``main_quantized``."""
        main = self.mod["main"]
        source = _input_quantize(self.mod) if quantized else None
        self.env, self.tensors, self.record = {}, {}, not quantized
        old = main.params[0]
        ty = TensorType(shape_of(source), str(source.ty.dtype)) if source is not None else old.ty
        param = relax.Var(old.name, ty)
        with function_scope(self.builder, name + self.suffix, [param]):
            with self.builder.dataflow():
                self._parameter(old, param)
                for b in dataflow_bindings(main):
                    if source is not None and b.var.same_as(source):
                        self._import(b.var, param)
                    else:
                        self._binding(b.var, b.value)
                result = self.builder.emit_output(self._plain(main.body.body))
            self.builder.emit_func_output(result)

    def _parameter(self, old: relax.Var, param: relax.Var) -> None:
        if is_integer(old):
            self._import(old, param)
        else:
            self._set_float(old, param, old.name)

    def _set_float(self, var: relax.Var, expr: relax.Expr, name: str) -> None:
        self.env[var] = expr
        if isinstance(var.ty, TensorType):
            shape = shape_of(var)
            self.tensors[var] = Tensor(
                name, shape4(shape), str(var.ty.dtype), None, PLAIN, rank=len(shape)
            )

    def _binding(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Var):
            self.env[var] = self.env[value]
            if value in self.tensors:
                self.tensors[var] = self.tensors[value]
        elif isinstance(value, relax.Call) and isinstance(value.op, relax.GlobalVar):
            self._group(var, value)
        elif isinstance(value, relax.TupleGetItem) and isinstance(
            self.env[value.tuple_value], list
        ):
            self.env[var], self.tensors[var] = self.env[value.tuple_value][value.index]
        elif any(v in self.placements for v in variables(value)):
            self._movement(var, value)
        else:
            self._set_float(
                var, self.builder.emit(substitute(value, lambda v: self.env[v])), var.name
            )

    def _group(self, var: relax.Var, call: relax.Call) -> None:
        func = self.mod[call.op]
        inputs = [self.tensors[a] for a in call.args]
        outs = self._result_vars(var)
        places = [self.placements.get(v) if v is not None else None for v in outs]
        layouts = [p.layout if p else PLAIN for p in places]
        layer = layer_from_function(func, inputs, layouts, [p.fill if p else 0 for p in places])
        for _, tensor in layer.outputs:
            tensor.layout = self._layout(tensor.layout, tensor.shape, tensor.range)
        items = self._emit(layer, call.op.name_hint, [self.env[a] for a in call.args])
        pairs = [(e, t) for e, (_, t) in zip(items, layer.outputs, strict=True)]
        if isinstance(var.ty, relax.TupleType):
            self.env[var] = pairs  # type: ignore[assignment]
        else:
            self.env[var], self.tensors[var] = pairs[0]

    def _layout(self, layout: Layout, shape: tuple[int, ...], values: IntRange | None) -> Layout:
        """The layout on this target: GPUs pack elements into words."""
        if values is None or self.target.kind.name != "cuda":
            return layout
        return packed(layout, shape, values.bits)

    def _result_vars(self, var: relax.Var) -> list[relax.Var | None]:
        """Variables that hold a group's results (a tuple's items are bound one by one)."""
        if not isinstance(var.ty, relax.TupleType):
            return [var]
        found: list[relax.Var | None] = [None] * len(var.ty.fields)
        for b in dataflow_bindings(self.mod["main"]):
            if isinstance(b.value, relax.TupleGetItem) and b.value.tuple_value.same_as(var):
                found[b.value.index] = b.var
        return found

    def _emit(self, layer: Layer, key: str, args: list[relax.Expr]) -> list[relax.Expr]:
        """Emit the kernel call of a layer; returns its results."""
        text = signature(layer)
        if text not in self.choices:
            self.choices[text] = select(self.rules, layer, self.target, self.tuned(text))
        choice = self.choices[text]
        name = kernel_name(layer, text) + self.suffix
        if name not in self.kernels:
            func = choice.rule.schedule(layer, self.target, choice.params, name)
            self.kernels[name] = self.builder.add_func(func, name)
        if key not in self.constants:
            arrays = choice.rule.constants(layer, self.target, choice.params)
            self.constants[key] = [relax.const(a, str(a.dtype)) for a in arrays]
            if "weight" in layer.ops[0].params:
                self.result.weight_bytes[layer.name] = arrays[0].nbytes
        scratch = choice.rule.workspace(layer, self.target, choice.params)
        types = [TensorType(shape, dtype) for shape, dtype in scratch]
        types += [TensorType(t.physical_shape, t.physical_dtype) for _, t in layer.outputs]
        call = self.builder.emit(
            relax.op.call_tir(
                self.kernels[name],
                [*args, *self.constants[key]],
                types if len(types) > 1 else types[0],
            )
        )
        if self.record:
            self.result.calls.append(LoweredCall(layer, text, name, choice))
        if len(types) == 1:
            return [call]
        own = range(len(scratch), len(types))
        return [self.builder.emit(relax.TupleGetItem(call, i)) for i in own]

    def _movement(self, var: relax.Var, value: relax.Expr) -> None:
        source = value.args[0] if isinstance(value, relax.Call) else None
        op = op_name(value) or type(value).__name__
        if source not in self.placements or var not in self.placements:
            raise UnsupportedError(
                f"{op} reads or makes integer tensors ({var.name!r}) and has no kernel"
            )
        tensor, place = self.tensors[source], self.placements[var]
        layout = self._layout(place.layout, shape_of(var), tensor.range)
        if op in ("relax.reshape", "relax.flatten") and _is_alias(tensor, var, layout):
            self.env[var] = self.env[source]
            self.tensors[var] = Tensor(
                tensor.name, shape4(shape_of(var)), tensor.dtype, tensor.range, layout, place.fill
            )
            return
        attrs = _movement_attrs(op, value, tensor)
        name = f"{tensor.name}.{op.split('.')[-1]}"
        layer = self._gather(name, attrs, tensor, shape_of(var), place)
        self._set_integer(var, layer, var.name, self.env[source])

    def _import(self, var: relax.Var, param: relax.Var) -> None:
        place = self.placements[var]
        shape, dtype = shape4(shape_of(var)), str(var.ty.dtype)
        lo, hi = input_range(self.mod, dtype)
        plain = Tensor("input", shape, dtype, IntRange(lo, hi), PLAIN, rank=len(shape_of(var)))
        layer = self._gather("input", {"mode": "import"}, plain, shape_of(var), place)
        self._set_integer(var, layer, "import", param)

    def _set_integer(self, var: relax.Var, layer: Layer, key: str, arg: relax.Expr) -> None:
        items = self._emit(layer, key, [arg])
        self.env[var], self.tensors[var] = items[0], layer.outputs[0][1]

    def _gather(
        self,
        name: str,
        attrs: dict[str, Any],
        source: Tensor,
        shape: tuple[int, ...],
        place: Placement,
    ) -> Layer:
        assert source.range is not None
        constant = attrs.get("value", source.range.lo)
        values = IntRange(min(source.range.lo, constant), max(source.range.hi, constant))
        layout = self._layout(place.layout, shape, values)
        out = Tensor(name, shape4(shape), source.dtype, values, layout, place.fill, len(shape))
        op = Op("gather", name, attrs, [("in", 0)], {}, source.dtype, (values.lo, values.hi))
        return Layer(name, [op], [source], [(0, out)], shape4(shape))

    def _plain(self, result: relax.Expr) -> relax.Expr:
        """The network's result in plain NCHW."""
        if not isinstance(result, relax.Var):
            msg = "the model returns several tensors; tvm-q4 compiles models with one output"
            raise UnsupportedError(msg)
        if result not in self.placements:
            return self.env[result]
        tensor = self.tensors[result]
        shape = shape_of(result)
        place = Placement(PLAIN)
        layer = self._gather(f"{tensor.name}.plain", {"mode": "import"}, tensor, shape, place)
        plain = self._emit(layer, "output", [self.env[result]])[0]
        return plain


def _is_alias(tensor: Tensor, var: relax.Var, layout: Layout) -> bool:
    """Whether a reshape only drops or adds positions of extent one, in the same memory."""
    new = shape4(shape_of(var))
    return tensor.shape == new and tensor.layout == layout and tensor.shape[2:] == (1, 1)


def _movement_attrs(op: str, value: relax.Call, tensor: Tensor) -> dict[str, Any]:
    """Attributes of the gather that equals a Relax data-movement operator."""
    if op in ("relax.reshape", "relax.flatten"):
        n, c, h, w = tensor.shape
        if shape_of(value) == (n, c * h * w):
            return {"mode": "flatten"}
    if op == "relax.strided_slice":
        begin, step = [0] * 4, [1] * 4
        axes, begins = (_int_tuple(value.args[i]) for i in (1, 2))
        steps = _int_tuple(value.args[4]) if len(value.args) > 4 else [1] * len(axes)
        for axis, b, s in zip(axes, begins, steps, strict=True):
            begin[axis], step[axis] = (max(b + tensor.shape[axis], 0) if b < 0 else b), s
        if min(step) > 0:
            return {"mode": "affine", "begin": begin, "strides": step}
    if op == "relax.nn.pad" and str(value.attrs["pad_mode"]) == "constant" and tensor.rank == 4:
        before = [-w for w in ops.ints(value.attrs["pad_width"])[0::2]]
        constant = int(float(value.attrs["pad_value"]))
        return {"mode": "affine", "begin": before, "strides": [1] * 4, "value": constant}
    msg = f"{op} on the integer tensor {tensor.name!r} of shape {list(tensor.shape)} has no kernel"
    raise UnsupportedError(msg)


def _int_tuple(expr: relax.Expr) -> list[int]:
    return [int(v.value) if hasattr(v, "value") else int(v) for v in expr]


def _input_quantize(mod: tvm.IRModule) -> relax.Var:
    """Variable that holds the quantized network input."""
    main = mod["main"]
    for b in dataflow_bindings(main):
        value = b.value
        if isinstance(value, relax.Call) and isinstance(value.op, relax.GlobalVar):
            first = dataflow_bindings(mod[value.op])[0].value
            if ops.is_q4(first, "quantize") and value.args[0].same_as(main.params[0]):
                return b.var
    raise AssertionError("no quantize on the input")


def has_quantized_input(mod: tvm.IRModule) -> bool:
    """Whether ``main`` reads its float input only through one q4.quantize."""
    main = mod["main"]
    readers = [
        b.value
        for b in dataflow_bindings(main)
        if isinstance(b.value, relax.Call) and any(a.same_as(main.params[0]) for a in b.value.args)
    ]
    if len(readers) != 1 or not isinstance(readers[0].op, relax.GlobalVar):
        return False
    return ops.is_q4(dataflow_bindings(mod[readers[0].op])[0].value, "quantize")


def input_range(mod: tvm.IRModule, dtype: str) -> tuple[int, int]:
    """Value range of the network's quantized input."""
    main = mod["main"]
    if is_integer(main.params[0]):
        info = np.iinfo(dtype)
        lo, hi = model_meta(mod).get("input_range", (int(info.min), int(info.max)))
        return int(lo), int(hi)
    var = _input_quantize(mod)
    for b in dataflow_bindings(main):
        if b.var.same_as(var):
            attrs = ops.attrs_of(dataflow_bindings(mod[b.value.op])[0].value)
            return attrs["qmin"], attrs["qmax"]
    raise AssertionError("no quantize on the input")


def lower_to_tir(
    mod: tvm.IRModule, target: Target, rules: list[ScheduleRule], tuned: Tuned, suffix: str = ""
) -> Lowered:
    """Lower a fused module for `target`.

    Parameters
    ----------
    mod : tvm.IRModule
        Module after ``FuseEpilogue``.
    target : tvm.target.Target
    rules : list of ScheduleRule
    tuned : callable
        Gives the best tuning record of a signature, or None.
    suffix : str
        Appended to the names of functions and kernels, so that modules of several CUDA families
        can be put into one.

    Returns
    -------
    Lowered
        The module with ``main``, ``main_quantized`` (where ``main`` reads its float input through
        one q4.quantize only), kernels, and untouched float operators.

    Raises
    ------
    UnsupportedError
        If an operator on integer tensors has no kernel, or the model returns several tensors.
    """
    lowering = _Lowering(mod, target, rules, tuned, suffix)
    lowering.function("main", quantized=False)
    if has_quantized_input(mod):
        lowering.function("main_quantized", quantized=True)
    new = lowering.builder.get()
    lowering.result.mod = new.with_attrs(dict(mod.attrs)) if mod.attrs else new
    return lowering.result
