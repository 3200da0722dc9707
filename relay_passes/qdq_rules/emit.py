"""From real values to q4 operators: exact integers, requantization, and the way back to float."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4.quant import IntRange, dyadic_array
from tvm_q4.relay_passes._rewrite import MainRewriter, Names, tensor_name
from tvm_q4.relay_passes.qdq_rules.layer import accumulator
from tvm_q4.relay_passes.qdq_rules.movement import keeps_elements, moved_quantized, moved_tensor
from tvm_q4.relay_passes.qdq_rules.real import (
    Clip,
    Concat,
    Constant,
    Linear,
    MaxPool,
    Movement,
    Quantizer,
    Real,
    Sum,
    Tensor,
    derived,
    expressible,
    per_channel,
)
from tvm_q4.relay_passes.qdq_rules.residual import emit_add

_UNIT = (2**30, 30)


class IntegerWriter:
    """Writes what `Real` values mean into the new module.

    Parameters
    ----------
    rewriter : MainRewriter
        Takes the bindings.
    names : Names
        Names of the new tensors.
    """

    def __init__(self, rewriter: MainRewriter, names: Names) -> None:
        self.rewriter = rewriter
        self.names = names
        self.two_sided: list[dict[str, str]] = []
        self._exact: dict[Real, Tensor | None] = {}

    def emit(self, call: relax.Call) -> relax.Var:
        """Bind a q4 call."""
        return self.rewriter.emit_q4(call)

    def width(self, real: Real) -> int:
        """Bits of the exact integer form of `real`, 64 where it has none."""
        if isinstance(real, Tensor):
            return real.range.bits
        if isinstance(real, (Clip, MaxPool, Movement)):
            return self.width(real.x)
        if isinstance(real, Concat):
            return max(self.width(p) for p in real.parts)
        return 32 if isinstance(real, Linear) else 64

    def exact(self, real: Real) -> Tensor | None:
        """Integer tensor that holds exactly `real`, written if it is not yet, or None."""
        if isinstance(real, Tensor):
            return real
        if real not in self._exact:
            self._exact[real] = self._written_exact(real)
        return self._exact[real]

    def _written_exact(self, real: Real) -> Tensor | None:
        if isinstance(real, Linear):
            return accumulator(real, self)
        if isinstance(real, Clip):
            return self._exact_clip(real)
        if isinstance(real, MaxPool):
            return self._exact_pool(real)
        if isinstance(real, Movement):
            x = self.exact(real.x)
            return None if x is None else moved_tensor(real, x, self.rewriter)
        if isinstance(real, Concat):
            return self._exact_concat(real)
        return None

    def _exact_clip(self, real: Clip) -> Tensor | None:
        x = self.exact(real.x)
        if x is None:
            return None
        lo, hi = _exact_low(x, real.low), _exact_high(x, real.high)
        if lo is None or hi is None:
            return None
        bounds = IntRange(lo, hi)
        if bounds == x.range:
            return x
        name = self.names.derive(f"{x.name}.clip")
        call = ops.requantize(
            x.var, *_UNIT, name=name, lo=bounds.lo, hi=bounds.hi, dtype=str(x.var.ty.dtype),
            zero_point=x.zero_point, in_zero_point=x.zero_point,
        )  # fmt: skip
        return derived(x, origin=real.origin, var=self.emit(call), range=bounds, name=name)

    def _exact_pool(self, real: MaxPool) -> Tensor | None:
        if self.width(real.x) > 16:
            return None
        x = self.exact(real.x)
        if x is None:
            return None
        name = self.names.take(tensor_name(real.origin))
        var = self.emit(ops.max_pool2d(x.var, name=name, **real.attrs))
        return derived(x, origin=real.origin, shape=real.shape, var=var, name=name)

    def _exact_concat(self, real: Concat) -> Tensor | None:
        if self.width(real) > 16:
            return None
        parts = [self.exact(p) for p in real.parts]
        first = parts[0]
        if first is None or any(p is None or not _same_units(p, first) for p in parts):
            return None
        name = self.names.take(tensor_name(real.origin))
        var = self.emit(ops.concat([p.var for p in parts], name=name, axis=real.axis))
        bounds = IntRange(min(p.range.lo for p in parts), max(p.range.hi for p in parts))
        bound = np.array(max(int(p.bound.max()) for p in parts))
        return derived(
            first,
            origin=real.origin,
            shape=real.shape,
            var=var,
            name=name,
            range=bounds,
            bound=bound,
        )

    def quantize(self, real: Real, q: Quantizer, name: str | None) -> relax.Var | None:
        """Integers of ``quantize(real)``; None where they cannot be had from integers alone.

        `name` is the name of the quantizer, or None for a step on the way to it.
        """
        if isinstance(real, Clip):
            return self.quantize(real.x, q.clamped(real.low, real.high), name)
        if isinstance(real, Sum):
            lhs, rhs = self.exact(real.lhs), self.exact(real.rhs)
            return (
                None
                if lhs is None or rhs is None
                else emit_add(self, lhs, rhs, q, self._name(name, tensor_name(real.origin)))
            )
        if isinstance(real, (MaxPool, Movement, Concat)):
            return self._quantize_moved(real, q, name)
        x = self.exact(real)
        return None if x is None else self.requantize(x, q, name)

    def _name(self, name: str | None, fallback: str) -> str:
        return self.names.derive(fallback) if name is None else self.names.take(name)

    def _quantize_moved(
        self, real: MaxPool | Movement | Concat, q: Quantizer, name: str | None
    ) -> relax.Var | None:
        """Pool or move on the narrower side: before the requantization or after it."""
        parts = real.parts if isinstance(real, Concat) else [real.x]
        x = self.exact(real) if self._is_narrower(real, parts, q) else None
        if x is not None:
            return self.requantize(x, q, name)
        inner = name if isinstance(real, Movement) and keeps_elements(real) else None
        moved = [self.quantize(p, q, inner) for p in parts]
        if any(m is None for m in moved):
            return None
        if isinstance(real, Movement):
            return moved_quantized(real, moved[0], q, self.rewriter)
        name = self._name(name, tensor_name(real.origin))
        if isinstance(real, MaxPool):
            return self.emit(ops.max_pool2d(moved[0], name=name, **real.attrs))
        return self.emit(ops.concat(moved, name=name, axis=real.axis))

    def _is_narrower(self, real: Real, parts: list[Real], q: Quantizer) -> bool:
        """Whether `real` is better pooled or moved as it is than after its requantization.

        Where `q` changes nothing, it is not, so that the quantizer's name goes to the result.
        """
        if self.width(real) > q.range.bits:
            return False
        tensors = [self.exact(p) for p in parts]
        return not all(t is not None and _is_identity(t, q) for t in tensors)

    def requantize(self, x: Tensor, q: Quantizer, name: str | None) -> relax.Var:
        """``q4.requantize`` of a tensor, or the tensor itself where nothing would change."""
        if _is_identity(x, q):
            return x.var
        ratio = per_channel(x.scale / q.scale)
        m, e = dyadic_array(ratio, x.name)
        offset = None
        if x.constant is not None:
            m, e, offset = _constants(x.constant.ravel(), m, e, q)
        fallback = f"{x.name}.{'out' if x.range.bits == 32 else 'rq'}"
        call = ops.requantize(
            x.var, m.reshape(ratio.shape), e.reshape(ratio.shape), name=self._name(name, fallback),
            lo=q.range.lo, hi=q.range.hi, dtype=q.dtype, zero_point=q.zero_point,
            in_zero_point=x.zero_point, offset=offset,
        )  # fmt: skip
        return self.emit(call)

    def to_float(self, real: Real) -> relax.Expr:
        """Float tensor of the new module for a value that a float operator, or nothing, reads."""
        if real.as_float is None:
            real.as_float = self._written_float(real)
        return real.as_float

    def _written_float(self, real: Real) -> relax.Expr:
        if isinstance(real, Constant):
            return relax.const(real.float32(), "float32")
        if ops.is_q4(real.origin.value, "dequantize"):
            self.names.take(tensor_name(real.origin))
            return self.rewriter.keep(real.origin)
        x = None if isinstance(real, (Clip, Sum)) else self.exact(real)
        if x is None or not expressible(x.scale) or per_channel(x.scale).ndim > 1:
            return self.rewriter.keep(real.origin)
        scale = float(x.scale.item()) if x.uniform else per_channel(x.scale)
        call = ops.dequantize(
            x.var, scale, x.zero_point, name=self.names.derive(f"{x.name}.dq"), qmin=x.range.lo,
            qmax=x.range.hi,
        )  # fmt: skip
        return self.emit(call)


def _same_units(a: Tensor, b: Tensor) -> bool:
    uniform = (
        a.uniform
        and b.uniform
        and a.zero_point == b.zero_point
        and a.var.ty.dtype == b.var.ty.dtype
    )
    return bool(uniform and a.scale.item() == b.scale.item())


def _is_identity(x: Tensor, q: Quantizer) -> bool:
    inside = x.range.lo >= q.range.lo and x.range.hi <= q.range.hi
    same = x.zero_point == q.zero_point and str(x.var.ty.dtype) == q.dtype
    return bool(inside and same and x.constant is None and (x.scale == q.scale).all())


def _constants(
    constant: NDArray[np.float64], m: NDArray[np.int32], e: NDArray[np.int32], q: Quantizer
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Multipliers, shifts and offsets in which constant channels are so many output steps."""
    dead = np.isfinite(constant)
    steps = np.rint(np.where(dead, constant, 0.0) / q.scale)
    offset = np.clip(steps, q.range.lo - q.zero_point, q.range.hi - q.zero_point)
    return np.where(dead, 0, m), np.where(dead, 1, e), np.where(dead, offset, 0).astype(np.int32)


def _exact_steps(x: Tensor, value: float) -> int | None:
    """The one integer of `x` that means exactly `value` in every channel, or None."""
    steps = value / x.scale + x.zero_point
    first = steps.flat[0]
    exact = first == np.rint(first) and (steps == first).all() and x.range.lo <= first <= x.range.hi
    return int(first) if exact else None


def _exact_low(x: Tensor, value: float) -> int | None:
    """Integer bound that says exactly ``real >= value``, None where no integer does."""
    unbounded = (value / x.scale + x.zero_point <= x.range.lo).all()
    return x.range.lo if unbounded else _exact_steps(x, value)


def _exact_high(x: Tensor, value: float) -> int | None:
    """Integer bound that says exactly ``real <= value``, None where no integer does."""
    unbounded = (value / x.scale + x.zero_point >= x.range.hi).all()
    return x.range.hi if unbounded else _exact_steps(x, value)
