"""A digest of what a model computes, by which a library and a model recognise each other."""

from __future__ import annotations

import hashlib
import json

import tvm
from tvm import relax

from tvm_q4 import ops


def model_hash(mod: tvm.IRModule) -> str:
    """SHA-256 over the operators, attributes and constants of an integer module, in order.

    Batch and image size do not enter: the same model compiled for another shape has the same hash.
    """
    digest = hashlib.sha256()
    numbers: dict[relax.Var, int] = {p: -1 for p in mod["main"].params}
    for block in mod["main"].body.blocks:
        for i, b in enumerate(block.bindings):
            numbers[b.var] = i
            _update(digest, b.value, numbers)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, value: relax.Expr, numbers: dict[relax.Var, int]) -> None:
    if isinstance(value, relax.Var):
        digest.update(f"var {numbers[value]};".encode())
    elif isinstance(value, relax.Call):
        attrs = ops.attrs_of(value) if ops.is_q4(value) else {}
        digest.update(f"call {value.op} {json.dumps(attrs, sort_keys=True)};".encode())
        for arg in value.args:
            _update(digest, arg, numbers)
    elif isinstance(value, tvm.ir.GenericConst):
        array = ops.const_array(value)
        digest.update(f"const {array.dtype} {array.shape};".encode() + array.tobytes())
    elif isinstance(value, relax.Tuple):
        for f in value.fields:
            _update(digest, f, numbers)
    elif not isinstance(value, relax.ShapeExpr):
        digest.update(f"{type(value).__name__};".encode())
