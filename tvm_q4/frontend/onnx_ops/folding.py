"""Arithmetic on constants, such as the shapes that exporters compute, done while importing."""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.frontend.common.values import Value
from tvm_q4.frontend.onnx_ops.registry import NodeView

_FOLDED = {
    "Add", "Cast", "Concat", "Div", "Equal", "Expand", "Floor", "Gather", "Identity", "Max", "Min",
    "Mul", "Neg", "Pow", "Reciprocal", "Reshape", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose",
    "Unsqueeze", "Where", "ConstantOfShape", "Range",
}  # fmt: skip
_SHAPED = {"Expand": 1, "ConstantOfShape": 0}
"""Operators whose result may be far larger than their inputs: which input states its shape."""

_MOST_ELEMENTS = 2**27


def fold(node: onnx.NodeProto, view: NodeView) -> Value | None:
    """Result of a node whose inputs are all constants; None where it is not one to fold.

    Raises
    ------
    UnsupportedError
        If the node cannot be computed, or its result would be beyond all measure.
    """
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Shape":
        return _shape(view)
    given = [v for v in view.inputs if v is not None]
    if node.op_type not in _FOLDED or not given:
        return None
    if any(not isinstance(v.expr, GenericConst) or v.range is not None for v in given):
        return None
    _check_size(node.op_type, view)
    names = {n: ops.const_array(v.expr) for n, v in zip(node.input, view.inputs, strict=True) if v}
    graph = onnx.helper.make_graph([node], "fold", [_any(n) for n in names], [_any(node.output[0])])
    opsets = [onnx.helper.make_opsetid("", view.opset)]
    result = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(
        None, names
    )
    array = np.asarray(result[0])
    if array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        raise view.unsupported(f"its value has type {array.dtype}, which is not supported")
    return Value(relax.const(array, str(array.dtype)), view.label, True)


def _any(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None)


def _check_size(op: str, view: NodeView) -> None:
    sizes = []
    if op in _SHAPED:
        sizes = view.integers_of(_SHAPED[op]) or []
    elif op == "Range":
        start, limit, delta = (float(view.array(i)) for i in range(3))  # type: ignore[arg-type]
        sizes = [int(abs(limit - start) / abs(delta)) + 1] if delta else [_MOST_ELEMENTS]
    elements = 1
    for size in sizes:
        elements *= max(abs(size), 1)
    if elements >= _MOST_ELEMENTS:
        raise view.unsupported(f"its value would have shape {sizes}")


def _shape(view: NodeView) -> Value:
    shape = view.tensor(0).shape
    end = view.attrs.get("end", len(shape))
    array = np.array(shape[view.attrs.get("start", 0) : end], "int64")
    return Value(relax.const(array, "int64"), view.label, True)
