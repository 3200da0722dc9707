"""A digest of what a model computes, by which a library and a model recognise each other."""

from __future__ import annotations

import hashlib
import json

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import GenericConst, tirx
from tvm_q4.relay_passes._rewrite import dataflow_bindings, op_name


def model_hash(mod: tvm.IRModule) -> str:
    """SHA-256 over the operators, attributes and constants of an integer module, in order.

    The batch does not enter: the same model compiled for another one has the same hash. Nor does
    the image size, but through operators whose attributes follow it (a global pool's window).
    """
    digest = hashlib.sha256()
    numbers: dict[relax.Var, int] = {p: -1 for p in mod["main"].params}
    for i, b in enumerate(dataflow_bindings(mod["main"])):
        numbers[b.var] = i
        _update(digest, b.value, numbers)
    return digest.hexdigest()


def _attributes(call: relax.Call) -> str:
    if ops.is_q4(call):
        return json.dumps(ops.attrs_of(call), sort_keys=True)
    return str(call.attrs) if call.attrs is not None else ""


def _update(digest: hashlib._Hash, value: relax.Expr, numbers: dict[relax.Var, int]) -> None:
    if isinstance(value, relax.Var):
        digest.update(f"var {numbers[value]};".encode())
    elif isinstance(value, relax.Call):
        digest.update(f"call {op_name(value)} {_attributes(value)};".encode())
        for arg in _hashed_args(value):
            _update(digest, arg, numbers)
    elif isinstance(value, GenericConst):
        array = ops.const_array(value)
        digest.update(f"const {array.dtype} {array.shape};".encode() + array.tobytes())
    elif isinstance(value, relax.Tuple):
        for f in value.fields:
            _update(digest, f, numbers)
    elif isinstance(value, (tirx.IntImm, tirx.FloatImm)):
        digest.update(f"{value.value};".encode())
    elif isinstance(value, relax.TupleGetItem):
        digest.update(f"item {value.index};".encode())
        _update(digest, value.tuple_value, numbers)
    elif not isinstance(value, relax.ShapeExpr):
        digest.update(f"{type(value).__name__};".encode())


def _hashed_args(call: relax.Call) -> list[relax.Expr]:
    """Arguments without the end of a slice, which follows the image size."""
    return [a for i, a in enumerate(call.args) if (op_name(call), i) != ("relax.strided_slice", 3)]
