"""Small ONNX models by hand, and what onnx's own reference implementation says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from tvm_q4 import ops
from tvm_q4.relay_passes._rewrite import dataflow_bindings

NARROW = {"int4": TensorProto.INT4, "uint4": TensorProto.UINT4}
MICROSOFT = "com.microsoft"


class Onnx:
    """Collects nodes; every method returns the name of a tensor.

    Parameters
    ----------
    opset : int
    shape : sequence of int or str or None
        The input's, named ``x``.
    """

    def __init__(self, shape: Sequence[Any] = (1, 3, 6, 5), opset: int = 21) -> None:
        self.opset = opset
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def const(self, value: ArrayLike, dtype: str | None = None, name: str | None = None) -> str:
        """A parameter; the narrow types ``int4`` and ``uint4`` are packed."""
        name = name or f"c{len(self.tensors)}"
        if dtype in NARROW:
            array = np.asarray(value)
            made = helper.make_tensor(name, NARROW[dtype], array.shape, array.ravel().tolist())
        else:
            made = numpy_helper.from_array(np.asarray(value, dtype), name)
        self.tensors.append(made)
        return name

    def node(self, op: str, *inputs: str, name: str = "", domain: str = "", **attrs: Any) -> str:
        """A node of one result."""
        out = attrs.pop("out", f"t{len(self.nodes)}")
        self.nodes.append(helper.make_node(op, inputs, [out], name=name, domain=domain, **attrs))
        return out

    def pair(self, scale: ArrayLike, zero: ArrayLike, dtype: str) -> list[str]:
        """Scale and zero point."""
        return [self.const(scale, "float32"), self.const(zero, dtype)]

    def q(
        self, x: str, scale: ArrayLike, zero: ArrayLike = 0, dtype: str = "int8", **a: Any
    ) -> str:
        """``QuantizeLinear``."""
        return self.node("QuantizeLinear", x, *self.pair(scale, zero, dtype), **a)

    def dq(
        self, x: str, scale: ArrayLike, zero: ArrayLike = 0, dtype: str = "int8", **a: Any
    ) -> str:
        """``DequantizeLinear``."""
        return self.node("DequantizeLinear", x, *self.pair(scale, zero, dtype), **a)

    def qdq(self, x: str, scale: ArrayLike, zero: ArrayLike = 0, dtype: str = "int8") -> str:
        """Both."""
        return self.dq(self.q(x, scale, zero, dtype), scale, zero, dtype)

    def clipped(self, x: str, scale: float, low: int, high: int, dtype: str = "int8") -> str:
        """Quantize, clip, dequantize: QCDQ."""
        bounds = [self.const(low, dtype), self.const(high, dtype)]
        return self.dq(self.node("Clip", self.q(x, scale, 0, dtype), *bounds), scale, 0, dtype)

    def model(self, *outputs: str, domains: Sequence[str] = (), **parts: Any) -> onnx.ModelProto:
        """The model that returns `outputs`."""
        results = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "net", [self.input], results, self.tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(d, 1) for d in (MICROSOFT, *domains)]
        made = helper.make_model(graph, opset_imports=opsets, producer_name="by hand", **parts)
        made.ir_version = 10
        return made


def run_onnx(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Result of a model by ONNX's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])


def q4_calls(mod: Any) -> dict[str, Any]:
    """The q4 calls of main by the name of their tensor, in order."""
    calls = [b.value for b in dataflow_bindings(mod["main"]) if ops.is_q4(b.value)]
    return {str(c.attrs["name"]): c for c in calls}


def constant(mod: Any, name: str, index: int) -> NDArray[Any]:
    """Constant argument `index` of the q4 call `name`."""
    return ops.const_array(q4_calls(mod)[name].args[index])


def ramp(*shape: int) -> NDArray[np.float32]:
    """Values around zero, multiples of 1/16, which float32 adds without rounding."""
    values = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    return (values * 7 % 41 - 19) * np.float32(0.0625)
