"""Stage-1 modules as a frontend makes them, in few words, and access to what passes make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import ArrayLike, NDArray
from tvm import relax

from tests.modules import module
from tvm_q4 import ops
from tvm_q4.relay_passes._rewrite import dataflow_bindings, op_name

CONTAINERS = {(4, True): "int8", (4, False): "uint8", (8, True): "int8", (8, False): "uint8"}
CONTAINERS |= {(16, True): "int16", (32, True): "int32"}


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """Range of a type."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


class Graph:
    """Emits operators into a dataflow block, with the quantizers that surround them."""

    def __init__(self, builder: relax.BlockBuilder) -> None:
        self.builder = builder

    def __call__(self, expr: relax.Expr) -> relax.Var:
        """Bind an expression."""
        return self.builder.emit(expr)

    def q(
        self,
        x: relax.Expr,
        name: str,
        scale: float,
        *,
        zero: int = 0,
        bits: int = 8,
        signed: bool = True,
    ) -> relax.Var:
        """``q4.quantize`` of one scale."""
        lo, hi = limits(bits, signed)
        dtype = CONTAINERS[bits, signed]
        return self(ops.quantize(x, scale, zero, name=name, qmin=lo, qmax=hi, dtype=dtype))

    def dq(
        self,
        x: relax.Expr,
        name: str,
        scale: float,
        *,
        zero: int = 0,
        bits: int = 8,
        signed: bool = True,
    ) -> relax.Var:
        """``q4.dequantize`` of one scale."""
        lo, hi = limits(bits, signed)
        return self(ops.dequantize(x, scale, zero, name=f"{name}.dq", qmin=lo, qmax=hi))

    def qdq(self, x: relax.Expr, name: str, scale: float, **kind: Any) -> relax.Var:
        """Quantize and dequantize."""
        return self.dq(self.q(x, name, scale, **kind), name, scale, **kind)

    def weight(self, w: NDArray[np.int8], scale: ArrayLike, name: str, bits: int = 8) -> relax.Var:
        """Dequantized integer weights with a scale an output channel."""
        lo, hi = limits(bits, True)
        scale = np.broadcast_to(np.asarray(scale, "float64"), (len(w),))
        zero = np.zeros(len(w), np.int32)
        const = relax.const(w, "int8")
        return self(
            ops.dequantize(const, scale, zero, name=f"{name}.weight.dq", qmin=lo, qmax=hi, axis=0)
        )

    def conv(
        self, x: relax.Expr, w: NDArray[np.int8], scale: ArrayLike, name: str,
        bias: ArrayLike | None = None, *, bits: int = 8, padding: int = 0, strides: int = 1,
        groups: int = 1,
    ) -> relax.Var:  # fmt: skip
        """Float convolution with dequantized weights, and its bias."""
        weight = self.weight(w, scale, name, bits)
        out = self(relax.op.nn.conv2d(x, weight, strides, padding, 1, groups))
        return out if bias is None else self.biased(out, bias)

    def biased(self, x: relax.Expr, bias: ArrayLike) -> relax.Var:
        """Add a bias [C] to a tensor NCHW."""
        const = relax.const(np.asarray(bias, "float32"), "float32")
        shaped = self(relax.op.reshape(const, [1, len(np.asarray(bias)), 1, 1]))
        return self(relax.op.add(x, shaped))

    def linear(
        self, x: relax.Expr, w: NDArray[np.int8], scale: ArrayLike, name: str,
        bias: ArrayLike | None = None,
    ) -> relax.Var:  # fmt: skip
        """Float linear layer with dequantized weights, as ``relax.op.linear`` writes it."""
        weight = self(relax.op.permute_dims(self.weight(w, scale, name)))
        out = self(relax.op.matmul(x, weight))
        return (
            out
            if bias is None
            else self(relax.op.add(out, relax.const(np.asarray(bias, "float32"))))
        )

    def relu(self, x: relax.Expr) -> relax.Var:
        """ReLU."""
        return self(relax.op.nn.relu(x))


def graph(
    build: Callable[[Graph, relax.Var], relax.Expr],
    shape: Sequence[int] = (1, 3, 6, 5),
    dtype: str = "float32",
) -> tvm.IRModule:
    """Module of what `build` emits from the input."""
    return module(shape, dtype, lambda builder, x: build(Graph(builder), x))


def weights(rng: np.random.Generator, shape: Sequence[int], bits: int = 8) -> NDArray[np.int8]:
    """Symmetric weights over the whole range of `bits`, extremes included."""
    top = (1 << (bits - 1)) - 1
    w = rng.integers(-top, top, shape, dtype=np.int8, endpoint=True)
    w.flat[0], w.flat[-1] = -top, top
    return w


def named(mod: tvm.IRModule) -> dict[str, relax.Call]:
    """The q4 calls of main by the name of their tensor, in order."""
    calls = [b.value for b in dataflow_bindings(mod["main"]) if ops.is_q4(b.value)]
    out = {str(c.attrs["name"]): c for c in calls}
    assert len(out) == len(calls), "two tensors have one name"
    return out


def attrs(mod: tvm.IRModule, name: str) -> dict[str, Any]:
    """Attributes of a q4 call."""
    return ops.attrs_of(named(mod)[name])


def constants(mod: tvm.IRModule, name: str) -> list[NDArray[Any]]:
    """Constant arguments of a q4 call, in order."""
    return [ops.const_array(a) for a in named(mod)[name].args if isinstance(a, tvm.ir.GenericConst)]


def op_names(mod: tvm.IRModule) -> list[str]:
    """Operators that main calls, in order."""
    return [op_name(b.value) for b in dataflow_bindings(mod["main"]) if op_name(b.value)]


def float_ops(mod: tvm.IRModule) -> list[str]:
    """Operators of main that are neither q4 operators nor reshapes and the like on integers."""
    moved = ("relax.reshape", "relax.strided_slice", "relax.nn.pad", "relax.permute_dims")
    bindings = dataflow_bindings(mod["main"])
    return [
        op_name(b.value)
        for b in bindings
        if op_name(b.value)
        and not ops.is_q4(b.value)
        and not (op_name(b.value) in moved and "int" in str(b.var.ty.dtype))
    ]
