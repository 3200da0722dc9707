"""``q4.quantize`` and ``q4.dequantize`` from checked parameters; equal ones on a tensor become one.

Bits are read from the range; the dtype is only the container.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_q4 import ops
from tvm_q4.frontend.common.values import ImporterFace, NodeFace, Value
from tvm_q4.quant import IntRange

CONTAINERS = ("int8", "uint8", "int16", "uint16", "int32")


@dataclass(frozen=True)
class QuantParams:
    """Quantization parameters of one node: a scale and a zero point each for the tensor or channel.

    Attributes
    ----------
    scale, zero_point : tuple
        One element, or one for each index of `axis` where `per_channel`.
    qmin, qmax : int
        Range of the integers.
    dtype : str
        Container, one of `CONTAINERS`.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    qmin: int
    qmax: int
    dtype: str
    axis: int
    per_channel: bool

    def arrays(self) -> tuple[Any, Any]:
        """Scale and zero point: scalars, or float64 and int32 arrays [C]."""
        if not self.per_channel:
            return self.scale[0], self.zero_point[0]
        return np.array(self.scale, "float64"), np.array(self.zero_point, "int32")

    def check(self, node: NodeFace, shape: list[int]) -> None:
        """Refuse what is not a quantization of a tensor of `shape` in integers."""
        if self.dtype not in CONTAINERS:
            known = ", ".join(CONTAINERS)
            raise node.unsupported(f"dtype {self.dtype} is not supported, only {known}")
        info = np.iinfo(self.dtype)
        if not info.min <= self.qmin < self.qmax <= info.max:
            raise node.unsupported(f"range {self.qmin}..{self.qmax} does not fit {self.dtype}")
        bad = [s for s in self.scale if not (math.isfinite(s) and s > 0)]
        if bad:
            raise node.unsupported(
                f"scale {bad[0]} is not positive and finite; calibrate the model again"
            )
        outside = [z for z in self.zero_point if not self.qmin <= z <= self.qmax]
        if outside:
            raise node.unsupported(f"zero point {outside[0]} is outside {self.qmin}..{self.qmax}")
        count = shape[self.axis] if self.per_channel else 1
        if len(self.scale) != count or len(self.zero_point) != count:
            raise node.unsupported(
                f"{len(self.scale)} scales and {len(self.zero_point)} zero points for {count} "
                "channels"
            )


def quantize(
    imp: ImporterFace, node: NodeFace, x: Value, p: QuantParams, form: str = "reciprocal"
) -> Value:
    """``q4.quantize`` of a float32 tensor."""
    if x.dtype != "float32":
        raise node.unsupported(f"the input has dtype {x.dtype}, expected float32")

    def make() -> Value:
        name = imp.quantized_name(node.tensor_role or x.base)
        call = ops.quantize(
            x.expr, *p.arrays(), name=name, qmin=p.qmin, qmax=p.qmax, dtype=p.dtype, axis=p.axis,
            form=form,
        )  # fmt: skip
        return Value(imp.emit(call, name), name, x.constant, IntRange(p.qmin, p.qmax))

    return imp.shared(("quantize", x, p, form), make)


def dequantize(imp: ImporterFace, node: NodeFace, x: Value, p: QuantParams) -> Value:
    """``q4.dequantize`` of an integer tensor."""
    if x.dtype != p.dtype:
        raise node.unsupported(f"the input has dtype {x.dtype}, the node says {p.dtype}")

    def make() -> Value:
        base = node.tensor_role or x.base
        name = imp.unique(base, ".dq")
        call = ops.dequantize(x.expr, *p.arrays(), name=name, qmin=p.qmin, qmax=p.qmax, axis=p.axis)
        return Value(imp.emit(call, name), base, x.constant)

    return imp.shared(("dequantize", x, p), make)
