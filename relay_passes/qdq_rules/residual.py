"""The residual add: form ``fused`` where its bounds hold, else ``two_sided``, which is reported."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4.quant import INT32_MAX, dyadic_array, fused_ratios
from tvm_q4.relay_passes.qdq_rules.real import Quantizer, Scale, Tensor, per_channel

if TYPE_CHECKING:
    from tvm_q4.relay_passes.qdq_rules.emit import IntegerWriter

logger = logging.getLogger(__name__)


def emit_add(writer: IntegerWriter, lhs: Tensor, rhs: Tensor, q: Quantizer, name: str) -> relax.Var:
    """Write ``quantize(lhs + rhs)`` as one ``q4.add``; the accumulator, if one is, on the left."""
    if rhs.range.bits > 16 >= lhs.range.bits:
        lhs, rhs = rhs, lhs
    r1, r2 = np.broadcast_arrays(lhs.scale / q.scale, rhs.scale / q.scale)
    form, ratios = "fused", _fused(r1, r2, name)
    reason = _why_not_fused(lhs, rhs, *ratios[:3])
    if reason:
        form, ratios = "two_sided", _two_sided(r1, r2, name)
        writer.two_sided.append({"name": name, "reason": reason})
        logger.info("add %s is two_sided: %s", name, reason)
    call = ops.add(
        lhs.var, rhs.var, *(per_channel(a) for a in ratios), name=name, form=form,
        lo=q.range.lo, hi=q.range.hi, dtype=q.dtype, zero_point=q.zero_point,
        lhs_zero_point=lhs.zero_point, rhs_zero_point=rhs.zero_point,
    )  # fmt: skip
    return writer.emit(call)


def _fused(r1: Scale, r2: Scale, name: str) -> tuple[NDArray[Any], ...]:
    m1, m2, e = (a.reshape(r1.shape) for a in fused_ratios(r1.ravel(), r2.ravel(), name))
    return m1, e, m2, e


def _two_sided(r1: Scale, r2: Scale, name: str) -> tuple[NDArray[Any], ...]:
    pairs = (*dyadic_array(r1, name), *dyadic_array(r2, name))
    return tuple(a.reshape(r1.shape) for a in pairs)


def _why_not_fused(
    lhs: Tensor, rhs: Tensor, m1: NDArray[np.int64], e: NDArray[np.int32], m2: NDArray[np.int64]
) -> str:
    """Reason that rules the fused form out (numerics.md), or an empty string."""
    if int(e.min()) < 1:
        return f"the common shift of channel {_channel(-e)} is {int(e.min())}, below 1"
    largest = int(max(m1.max(), m2.max()))
    if largest > INT32_MAX:
        return f"a multiplier is {largest}, beyond int32"
    peak = (
        _product(lhs, m1)
        + _product(rhs, m2)
        + np.array([1 << int(s - 1) for s in e.flat]).reshape(e.shape)
    )
    if (peak >= 1 << 63).any():
        return f"the products of channel {_channel(peak)} may reach {np.max(peak)}, 2^63 or more"
    return ""


def _channel(values: NDArray[Any]) -> int:
    """Channel in which a broadcastable parameter is largest."""
    return int(np.unravel_index(np.argmax(values), values.shape)[1])


def _product(x: Tensor, m: NDArray[np.int64]) -> NDArray[Any]:
    """Upper bound of ``|x| * m`` in Python integers, which do not wrap."""
    return x.bound.astype(object) * m.astype(object)
