"""From an integer module to a recipe's document and arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.errors import UnsupportedError
from tvm_q4.frontend.recipe_schema import FORMAT, Q4_SPECS, VERSION
from tvm_q4.meta import model_meta

Entry = dict[str, Any]


def export_document(mod: tvm.IRModule) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Document and arrays of our own format.

    Raises
    ------
    UnsupportedError
        If ``main`` holds anything but q4 operators and data movement on integers.
    """
    main = mod["main"]
    (param,) = main.params
    calls = [b.value for block in main.body.blocks for b in block.bindings]
    taken = {str(c.attrs["name"]) for c in calls if ops.is_q4(c)}
    exporter = _Exporter(param, taken)
    for block in main.body.blocks:
        for binding in block.bindings:
            exporter.binding(binding)
    shape = [int(d) for d in param.ty.shape]
    document = {
        "format": FORMAT,
        "version": VERSION,
        "meta": model_meta(mod),
        "input": {"name": exporter.names[param], "shape": shape[1:], "dtype": str(param.ty.dtype)},
        "output": exporter.tensor(main.body.body, "the result"),
        "ops": exporter.entries,
    }
    return document, exporter.arrays


class _Exporter:
    """Collects the operators of one function in order."""

    def __init__(self, param: relax.Var, taken: set[str]) -> None:
        self.taken = taken
        self.names: dict[relax.Var, str] = {param: self.fresh(param.name)}
        self.batch = int(param.ty.shape[0])
        self.entries: list[Entry] = []
        self.arrays: dict[str, NDArray] = {}

    def fresh(self, name: str) -> str:
        """`name`, lengthened until no tensor has it."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def tensor(self, expr: relax.Expr, reader: str) -> str:
        """Recipe name of a variable."""
        if isinstance(expr, relax.Var) and expr in self.names:
            return self.names[expr]
        msg = f"{reader} is a {type(expr).__name__}; a recipe's operators read single tensors"
        raise UnsupportedError(msg)

    def binding(self, binding: relax.Binding) -> None:
        value = binding.value if isinstance(binding, relax.VarBinding) else None
        if isinstance(value, relax.Var):
            self.names[binding.var] = self.tensor(value, f"variable {binding.var.name!r}")
            return
        if not isinstance(value, relax.Call):
            msg = (
                f"variable {binding.var.name!r} is no operator call; a recipe holds operators only"
            )
            raise UnsupportedError(msg)
        entry = self._q4(value) if ops.is_q4(value) else self._movement(value, binding.var)
        self.names[binding.var] = entry["name"]
        self.entries.append(entry)

    def _q4(self, call: relax.Call) -> Entry:
        op, attributes = call.op.name.removeprefix("q4."), ops.attrs_of(call)
        spec, name = Q4_SPECS[op], str(attributes.pop("name"))
        where = f"{call.op.name} {name!r}"
        tensors = len(call.args) if not spec.arrays else spec.tensors[0]
        inputs = [self.tensor(a, f"an input of {where}") for a in call.args[:tensors]]
        entry: Entry = {"op": op, "name": name, "inputs": inputs}
        for key, arg in zip(spec.arrays, call.args[tensors:], strict=False):
            if not isinstance(arg, GenericConst):
                msg = f"{where}: {key} is no constant; fold constants before the export"
                raise UnsupportedError(msg)
            entry[key] = f"{name}.{key}"
            self.arrays[entry[key]] = ops.const_array(arg)
        return entry | {k: attributes[k] for k in spec.attributes}

    def _movement(self, call: relax.Call, var: relax.Var) -> Entry:
        op = call.op.name if isinstance(call.op, tvm.ir.Op) else f"function {call.op!s}"
        if op not in _MOVEMENT or str(call.ty.dtype) == "float32":
            msg = (
                f"operator {op} at {var.name!r} is not integer data movement; a recipe holds "
                "integers only: quantize this part, and export before fusion"
            )
            raise UnsupportedError(msg)
        reads = f"an input of {op} at {var.name!r}"
        name = self.fresh(var.name)
        entry: Entry = {"op": "", "name": name, "inputs": [self.tensor(call.args[0], reads)]}
        return entry | _MOVEMENT[op](call, self.batch, f"operator {op} at {var.name!r}")


def _reshape(call: relax.Call, batch: int, where: str) -> Entry:
    shape = [int(d) for d in call.ty.shape]
    if not shape or shape[0] != batch:
        msg = (
            f"{where}: the shape {shape} does not keep the batch of {batch} first; a recipe "
            "has no batch"
        )
        raise UnsupportedError(msg)
    return {"op": "reshape", "shape": shape[1:]}


def _permute_dims(call: relax.Call, _batch: int, where: str) -> Entry:
    rank = len(call.ty.shape)
    axes = list(range(rank))[::-1] if call.attrs.axes is None else ops.ints(call.attrs.axes)
    axes = [a % rank for a in axes]
    if axes[0] != 0:
        raise UnsupportedError(f"{where}: axes {axes} move the batch; a recipe has no batch")
    return {"op": "permute_dims", "axes": axes}


def _strided_slice(call: relax.Call, _batch: int, where: str) -> Entry:
    lists = [[int(v.value) for v in arg.fields] for arg in call.args[1:]]
    axes = [a % len(call.ty.shape) for a in lists[0]]
    steps = lists[3] if len(lists) > 3 else [1] * len(axes)
    if 0 in axes or min(steps) < 1:
        msg = f"{where}: axes {axes}, strides {steps}; a recipe slices forward and never the batch"
        raise UnsupportedError(msg)
    return {
        "op": "strided_slice", "axes": axes, "begin": lists[1], "end": lists[2], "strides": steps,
    }  # fmt: skip


def _pad(call: relax.Call, _batch: int, where: str) -> Entry:
    width, mode = ops.ints(call.attrs.pad_width), str(call.attrs.pad_mode)
    if mode != "constant" or any(width[:2]) or len(call.args) > 1:
        raise UnsupportedError(
            f"{where}: mode {mode}, widths {width}; a recipe pads with a constant only"
        )
    return {"op": "pad", "pad_width": width, "value": float(call.attrs.pad_value)}


_MOVEMENT: dict[str, Callable[[relax.Call, int, str], Entry]] = {
    "relax.reshape": _reshape,
    "relax.flatten": _reshape,
    "relax.squeeze": _reshape,
    "relax.expand_dims": _reshape,
    "relax.permute_dims": _permute_dims,
    "relax.strided_slice": _strided_slice,
    "relax.nn.pad": _pad,
}
