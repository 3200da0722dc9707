"""Values of QdqToInteger's abstract interpretation: what a float tensor of the model means.

A `Tensor` is an integer tensor of the new module with its scale. The other kinds are not written
yet, because what follows decides how: a convolution waits for its bias, a ReLU for the quantizer
whose clamp it becomes, a residual add for the scale of its result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_q4.quant import IntRange

Scale = NDArray[np.float64]


@dataclass(eq=False, kw_only=True)
class Real:
    """A float tensor of the old module with a meaning in integers.

    Attributes
    ----------
    origin : relax.VarBinding
        Its binding in the old module; written again where a float operator reads the value.
    shape : tuple of int
    as_float : relax.Expr or None
        The float tensor in the new module, once something asked for it.
    """

    origin: relax.VarBinding
    shape: tuple[int, ...]
    as_float: relax.Expr | None = field(default=None, repr=False)


@dataclass(eq=False, kw_only=True)
class Tensor(Real):
    """``scale * (var - zero_point)``.

    Attributes
    ----------
    var : relax.Var
        Integer tensor of the new module.
    scale : float64 ndarray
        Of the tensor's rank, broadcastable to it; never varies along the batch.
    range : IntRange
        Declared range of the integers.
    bound : int64 ndarray
        Largest ``|var - zero_point|``, broadcastable to the tensor.
    name : str
        Name of the integer tensor.
    constant : float64 ndarray or None
        Value of channels that are constants whose integer bias did not fit, NaN elsewhere.
    """

    var: relax.Var
    scale: Scale
    range: IntRange
    bound: NDArray[np.int64]
    name: str
    zero_point: int = 0
    constant: Scale | None = None

    @property
    def uniform(self) -> bool:
        """Whether one scale holds for the whole tensor."""
        return self.scale.size == 1


def derived(x: Tensor, **changes: Any) -> Tensor:
    """A tensor in the units of `x`. Constant channels go on with their bias, which is exact."""
    return replace(x, as_float=None, constant=None, **changes)


@dataclass(eq=False, kw_only=True)
class Constant(Real):
    """A parameter: float values, or integers with a scale (``scale * (values - zero_point)``)."""

    values: NDArray[Any]
    scale: Scale | None = None
    zero_point: NDArray[np.int64] | None = None
    range: IntRange | None = None

    def real(self) -> NDArray[np.float64]:
        """The values in float64."""
        if self.scale is None:
            return self.values.astype(np.float64)
        return (self.values.astype(np.float64) - self.zero_point) * self.scale

    def float32(self) -> NDArray[np.float32]:
        """The values as ``q4.dequantize`` computes them."""
        if self.scale is None:
            return self.values.astype(np.float32)
        steps = self.values.astype(np.int64) - self.zero_point
        return steps.astype(np.float32) * self.scale.astype(np.float32)


@dataclass(eq=False, kw_only=True)
class Linear(Real):
    """A convolution or linear layer of a quantized tensor with integer weights, and its bias.

    ``kind`` is ``conv2d`` or ``dense``; `weight` is int8 OIHW or OI with `weight_scale` [O];
    `bias` is float64 [O]; `attrs` are the convolution's windows.
    """

    kind: str
    x: Tensor
    weight: NDArray[np.int8]
    weight_scale: Scale
    weight_bits: int
    bias: Scale
    name: str
    attrs: dict[str, Any]


@dataclass(eq=False, kw_only=True)
class Clip(Real):
    """`x` clamped to real bounds; a ReLU is (0, inf)."""

    x: Real
    low: float
    high: float


@dataclass(eq=False, kw_only=True)
class Sum(Real):
    """The residual add of two tensors."""

    lhs: Real
    rhs: Real


@dataclass(eq=False, kw_only=True)
class MaxPool(Real):
    """Maximum over windows."""

    x: Real
    attrs: dict[str, Any]


@dataclass(eq=False, kw_only=True)
class Movement(Real):
    """A reshape, permutation, slice or constant padding."""

    x: Real
    call: relax.Call


@dataclass(eq=False, kw_only=True)
class Concat(Real):
    """Tensors joined along `axis`."""

    parts: list[Real]
    axis: int


@dataclass(frozen=True)
class Quantizer:
    """What a ``q4.quantize`` asks for: ``clamp(zero_point + round(x / scale), lo, hi)``."""

    scale: float
    zero_point: int
    range: IntRange
    dtype: str

    def steps(self, value: float) -> int:
        """The integer that stands for a real value, half-even, clamped to the range."""
        steps = np.clip(np.rint(value / self.scale) + self.zero_point, self.range.lo, self.range.hi)
        return int(steps)

    def clamped(self, low: float, high: float) -> Quantizer:
        """The quantizer of ``clip(x, low, high)``; it is monotone, so only bounds change."""
        bounds = IntRange(self.steps(low), self.steps(high))
        return Quantizer(self.scale, self.zero_point, bounds, self.dtype)


def broadcast_scale(values: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
    """A scalar or per-channel parameter [C] shaped to broadcast along `axis` of a tensor."""
    shape = [1] * rank
    if values.size > 1:
        shape[axis] = values.size
    return values.reshape(shape)


def per_channel(values: NDArray[Any]) -> NDArray[Any]:
    """A broadcastable parameter as q4 operators take it: [1], [C] of axis 1, or of rank 4."""
    if values.size == 1:
        return values.reshape(1)
    if values.ndim > 1 and values.size == values.shape[1]:
        return values.reshape(-1)
    assert values.ndim == 4, f"a parameter of shape {values.shape} has no form"
    return values


def expressible(values: NDArray[Any]) -> bool:
    """Whether `per_channel` has a form for a parameter."""
    return (
        values.ndim == 4 or values.size == 1 or (values.ndim > 1 and values.size == values.shape[1])
    )
