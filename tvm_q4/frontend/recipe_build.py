"""From a recipe's document and arrays to a Relax module, checking every value on the way."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import TensorType
from tvm_q4.errors import InputError, Q4Error, UnsupportedError
from tvm_q4.frontend.recipe_checks import check_op
from tvm_q4.frontend.recipe_schema import MOVEMENT_SPECS, OP_SPECS, check_keys, is_int
from tvm_q4.meta import with_meta
from tvm_q4.quant import INT32_MAX

_INPUT_TYPES = ("float32", "int8", "uint8", "int16", "uint16")


def build_module(
    document: dict[str, Any],
    arrays: dict[str, NDArray],
    batch: int,
    image_size: tuple[int, int] | None = None,
) -> tvm.IRModule:
    """Integer module of a document of our own format.

    Raises
    ------
    InputError, UnsupportedError
        Naming the operator and its value.
    """
    check_keys(document, {"input", "output", "ops"}, {"format", "version", "meta"}, "recipe")
    entries, meta = document["ops"], document.get("meta", {})
    if not isinstance(entries, list) or not entries:
        raise InputError("recipe: 'ops' must be a list with at least one operator")
    if not isinstance(meta, dict):
        raise InputError("recipe: 'meta' must be an object")
    param = _parameter(document["input"], batch, image_size)
    _check_names(entries, document)
    mod = _Builder(arrays, batch).build(param, entries, document["output"])
    return with_meta(mod, **meta) if meta else mod


def _parameter(entry: Any, batch: int, image_size: tuple[int, int] | None) -> relax.Var:
    check_keys(entry, {"name", "shape", "dtype"}, set(), "recipe input")
    shape, dtype = entry["shape"], entry["dtype"]
    if not isinstance(entry["name"], str) or not entry["name"]:
        raise InputError(f"recipe input: name {entry['name']!r} must be a text")
    sizes = isinstance(shape, list) and all(is_int(d) and 0 < d <= INT32_MAX for d in shape)
    if not sizes or not shape:
        raise InputError(
            f"recipe input: shape {shape!r} must list sizes of 1 to {INT32_MAX}, without the batch"
        )
    if dtype not in _INPUT_TYPES:
        raise InputError(f"recipe input: dtype {dtype!r} must be one of {', '.join(_INPUT_TYPES)}")
    if image_size is not None:
        if len(shape) != 3:
            raise InputError(f"recipe input: shape {shape} has no height and width to change")
        shape = [shape[0], *image_size]
    return relax.Var(entry["name"], TensorType([batch, *shape], dtype))


def _check_names(entries: list[Any], document: dict[str, Any]) -> None:
    """Every tensor is made once, and before it is read."""
    made: set[str] = {document["input"]["name"]}
    all_names = {
        e.get("name") for e in entries if isinstance(e, dict) and isinstance(e.get("name"), str)
    }
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"recipe op {i}: expected an object, found {type(entry).__name__}")
        name, op = entry.get("name"), entry.get("op")
        if not isinstance(name, str) or not name:
            raise InputError(f"recipe op {i} ({op}): name {name!r} must be a text")
        where = f"recipe op {op} {name!r}"
        if not isinstance(op, str) or op not in OP_SPECS:
            msg = f"{where}: operator {op!r} is unknown; known are {', '.join(OP_SPECS)}"
            raise UnsupportedError(msg)
        if name in made:
            raise InputError(f"{where}: two tensors have this name; names must be unique")
        inputs = entry.get("inputs")
        if not isinstance(inputs, list) or not all(isinstance(x, str) for x in inputs):
            raise InputError(f"{where}: 'inputs' must be a list of tensor names")
        for x in inputs:
            if x not in made:
                later = "is made later: operators must be in order, without cycles"
                reason = later if x in all_names else "does not exist"
                raise InputError(f"{where}: reads tensor {x!r}, which {reason}")
        made.add(name)
    if not isinstance(document["output"], str) or document["output"] not in made:
        raise InputError(f"recipe: output {document['output']!r} is no tensor of the recipe")


class _Builder:
    """Makes the operators of one recipe.

    Bindings are collected by hand: a BlockBuilder left by an exception writes to standard error.
    """

    def __init__(self, arrays: dict[str, NDArray], batch: int) -> None:
        self.arrays = arrays
        self.batch = batch
        self.used: set[str] = set()
        self.bindings: list[relax.VarBinding] = []

    def build(self, param: relax.Var, entries: list[dict[str, Any]], output: str) -> tvm.IRModule:
        """Module of one dataflow block that returns the tensor `output`."""
        tensors: dict[str, relax.Expr] = {param.name: param}
        for entry in entries:
            call = self._typed(self._call(entry, [tensors[x] for x in entry["inputs"]]), entry)
            var = relax.DataflowVar(re.sub(r"\W", "_", entry["name"]), call.ty)
            self.bindings.append(relax.VarBinding(var, call))
            tensors[entry["name"]] = var
        unused = sorted(set(self.arrays) - self.used)
        if unused:
            raise InputError(f"recipe array {unused[0]!r} belongs to no operator; remove it")
        result = relax.Var("gv", tensors[output].ty)
        self.bindings.append(relax.VarBinding(result, tensors[output]))
        body = relax.SeqExpr([relax.DataflowBlock(self.bindings)], result)
        main = relax.Function([param], body, result.ty).with_attr("global_symbol", "main")
        return relax.transform.Normalize()(tvm.IRModule({"main": main}))

    def _typed(self, call: relax.Call, entry: dict[str, Any]) -> relax.Call:
        """`call` with its inferred type."""
        try:
            return relax.BlockBuilder().normalize(call)
        except Q4Error:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            detail = str(error).strip().splitlines()[-1]
            msg = f"recipe op {entry['op']} {entry['name']!r} does not fit its inputs: {detail}"
            raise InputError(msg) from error

    def _call(self, entry: dict[str, Any], inputs: list[relax.Expr]) -> relax.Call:
        op, name = entry["op"], entry["name"]
        constants = self._constants(entry)
        attributes = {k: entry[k] for k in OP_SPECS[op].attributes if k in entry}
        check_op(entry, constants, [x.ty for x in inputs])
        if op in MOVEMENT_SPECS:
            return _MOVEMENT[op](inputs[0], attributes, self.batch)
        for key in ("numerator", "denominator"):
            if key in attributes:
                attributes[key] = float(attributes[key])
        args = [relax.const(a, str(a.dtype)) for a in constants.values()]
        return ops.call(op, [*inputs, *args], name=name, **attributes)

    def _constants(self, entry: dict[str, Any]) -> dict[str, NDArray]:
        found = {}
        for key, spec in OP_SPECS[entry["op"]].arrays.items():
            where = f"recipe op {entry['op']} {entry['name']!r}"
            ref = entry.get(key)
            if ref is None and spec.optional:
                continue
            if not isinstance(ref, str):
                raise InputError(f"{where}: {key!r} must be the name of an array in model.npz")
            if ref not in self.arrays:
                raise InputError(f"{where}: array {ref!r} ({key}) is not in model.npz")
            self.used.add(ref)
            found[key] = self.arrays[ref]
        return found


def _strided_slice(x: relax.Expr, a: dict[str, Any], _batch: int) -> relax.Call:
    return relax.op.strided_slice(x, a["axes"], a["begin"], a["end"], a["strides"])


_MOVEMENT: dict[str, Callable[[relax.Expr, dict[str, Any], int], relax.Call]] = {
    "reshape": lambda x, a, batch: relax.op.reshape(x, [batch, *a["shape"]]),
    "permute_dims": lambda x, a, _batch: relax.op.permute_dims(x, a["axes"]),
    "strided_slice": _strided_slice,
    "pad": lambda x, a, _batch: relax.op.nn.pad(x, a["pad_width"], "constant", float(a["value"])),
}
