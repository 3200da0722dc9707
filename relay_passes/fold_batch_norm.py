"""FoldBatchNorm: fold inference batch normalization into the convolution before it.

``gamma * (w x + b - mean) / sigma + beta`` is a convolution with the weights ``f w`` and the bias
``f (b - mean) + beta``, where ``f = gamma / sigma``. Float weights are multiplied. Integer weights
stay integers: their scale takes ``|f|`` in float64, and channels with a negative `f` change sign.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.errors import NumericsError
from tvm_q4.meta import with_meta
from tvm_q4.quant import INT32_MAX, INT32_MIN
from tvm_q4.relay_passes._rewrite import (
    MainRewriter,
    has_op,
    layer_name,
    op_name,
    tensor_name,
    use_counts,
)

logger = logging.getLogger(__name__)
Array = NDArray[np.float64]


@dataclass
class _Site:
    """A convolution, its bias (zero where it has none) and the batch norm that reads it."""

    conv: relax.VarBinding
    bias: Array
    norm: relax.Call
    name: str


class _Unfoldable(Exception):
    """Why a batch norm stays."""


class _Folder(MainRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.uses = use_counts(self.main)
        self.kept: list[dict[str, str]] = []

    def visit(self, binding: relax.VarBinding) -> relax.Expr:
        value = binding.value
        if not isinstance(value, relax.TupleGetItem) or value.index != 0:
            return self.keep(binding)
        norm = self.definitions.get(value.tuple_value)
        if norm is None or op_name(norm) != "relax.nn.batch_norm":
            return self.keep(binding)
        try:
            return self._folded(self._site(value.tuple_value, norm))
        except _Unfoldable as reason:
            name = tensor_name(relax.VarBinding(value.tuple_value, norm))
            self.kept.append({"name": name, "reason": str(reason)})
            logger.info("batch norm %s stays: %s", name, reason)
            return self.keep(binding)

    def _site(self, var: relax.Var, norm: relax.Call) -> _Site:
        """The convolution that `norm` reads, directly or through the add of a constant bias."""
        if self.uses[var] != 1 or bool(norm.attrs.training) or int(norm.attrs.axis) != 1:
            raise _Unfoldable("it is in training mode, or not along the channels")
        x, bias = norm.args[0], np.zeros(1)
        if op_name(self._made(x)) == "relax.add":
            add = self._made(x)
            bias = self._constant(add.args[1])
            x = self._single(add.args[0], x)
        conv = self._made(x)
        if op_name(conv) != "relax.nn.conv2d" or str(conv.attrs.kernel_layout) != "OIHW":
            raise _Unfoldable("no convolution stands before it")
        self._single(x, x)
        binding = relax.VarBinding(x, conv)
        weight = self._made(conv.args[1])
        made_by = str(weight.attrs["name"]) if ops.is_q4(weight) else ""
        return _Site(binding, bias.reshape(-1), norm, layer_name(made_by, binding))

    def _made(self, expr: relax.Expr) -> relax.Expr | None:
        return self.definitions.get(expr) if isinstance(expr, relax.Var) else expr

    def _single(self, *read: relax.Expr) -> relax.Expr:
        if any(self.uses.get(v, 0) != 1 for v in read):
            raise _Unfoldable("the convolution is read by something else too")
        return read[0]

    def _constant(self, expr: relax.Expr) -> Array:
        """Value of a parameter, through reshapes and dequantization."""
        made = self._made(expr)
        if isinstance(made, GenericConst):
            return ops.const_array(made).astype(np.float64)
        if op_name(made) == "relax.reshape":
            return self._constant(made.args[0])
        if ops.is_q4(made, "dequantize") and isinstance(made.args[0], GenericConst):
            q, scale, zero = (ops.const_array(a).astype(np.float64) for a in made.args)
            if max(scale.size, zero.size) in (1, q.size):
                return (q.ravel() - zero) * scale
        raise _Unfoldable("the bias before it is not a constant")

    def _folded(self, site: _Site) -> relax.Var:
        gamma, beta, mean, var = (self._constant(a) for a in site.norm.args[1:])
        a = site.norm.attrs
        factor = _factor(gamma if a.scale else np.ones_like(var), var, float(a.epsilon), site.name)
        bias = factor * (site.bias - mean) + (beta if a.center else 0.0)
        old = site.conv.value
        weight, integer = self._scaled_weight(old.args[1], factor)
        args = [self.remap(old.args[0]), weight]
        conv = self.emit(relax.Call(old.op, args, old.attrs, old.ty_args, old.span), site.name)
        add = relax.op.add(conv, self._bias(bias, integer, site.name))
        return self.emit(relax.Call(add.op, add.args, add.attrs, add.ty_args, old.span), site.name)

    def _scaled_weight(self, expr: relax.Expr, factor: Array) -> tuple[relax.Expr, bool]:
        """The weights times `factor`, and whether they are integers with a scale."""
        made = self._made(expr)
        if isinstance(made, GenericConst):
            scaled = ops.const_array(made).astype(np.float64) * factor.reshape(-1, 1, 1, 1)
            return relax.const(scaled.astype(np.float32), "float32"), False
        if not ops.is_q4(made, "dequantize") or not isinstance(made.args[0], GenericConst):
            raise _Unfoldable("the weights are not a constant")
        self._single(expr)
        return self.emit_q4(_scaled_integers(made, factor)), True

    def _bias(self, bias: Array, integer: bool, name: str) -> relax.Expr:
        """The bias [1, O, 1, 1]: float32, or beside integer weights 31 bits times a power of two.

        The latter keeps what float64 says of it until QdqToInteger rounds it to the accumulator's
        scale.
        """
        shape = (1, -1, 1, 1)
        if not integer:
            return relax.const(bias.reshape(shape).astype(np.float32), "float32")
        fraction, exponent = np.frexp(bias)
        integers = relax.const(np.rint(fraction * 2.0**30).astype(np.int32).reshape(shape), "int32")
        scale = np.ldexp(1.0, exponent - 30)
        zeros = np.zeros(len(bias), np.int32)
        return self.emit_q4(
            ops.dequantize(
                integers,
                scale,
                zeros,
                name=f"{name}.bias.dq",
                qmin=INT32_MIN,
                qmax=INT32_MAX,
                axis=1,
            )
        )


def _factor(gamma: Array, var: Array, epsilon: float, name: str) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = gamma / np.sqrt(var + epsilon)
    bad = np.flatnonzero(~np.isfinite(factor))
    if bad.size:
        o = int(bad[0])
        msg = (
            f"batch norm after {name!r} channel {o}: variance {float(var[o])!r} plus epsilon "
            f"{epsilon!r} with weight {float(gamma[o])!r} gives no finite factor; mend the model"
        )
        raise NumericsError(msg)
    return factor


def _scaled_integers(dequantize: relax.Call, factor: Array) -> relax.Call:
    """The dequantization of integer weights whose scale takes ``|factor|``; where 0, they are 0."""
    a = ops.attrs_of(dequantize)
    q, scale, zero = (ops.const_array(arg) for arg in dequantize.args)
    if a["axis"] != 0 and scale.size > 1:
        raise _Unfoldable("the weights have no scale for each output channel")
    if zero.any() or a["form"] != "multiply":
        raise _Unfoldable("the weights are not symmetric")
    signed = q.astype(np.int32) * np.sign(factor).astype(np.int32).reshape(-1, 1, 1, 1)
    if signed.min() < a["qmin"] or signed.max() > a["qmax"]:
        worst = int(np.argmax((signed < a["qmin"]) | (signed > a["qmax"])) // signed[0].size)
        raise _Unfoldable(
            f"the weights of channel {worst} leave {a['qmin']}..{a['qmax']} when they change sign"
        )
    size = np.where(factor == 0, 1.0, np.abs(factor))
    return ops.dequantize(
        relax.const(signed.astype(q.dtype), str(q.dtype)), scale.astype(np.float64) * size,
        np.zeros(len(factor), np.int32), name=a["name"], qmin=a["qmin"], qmax=a["qmax"], axis=0,
    )  # fmt: skip


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
def FoldBatchNorm(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Fold ``relax.nn.batch_norm`` into convolutions; a module without any is returned as it is.

    Batch norms that stay float are recorded as the module's fact ``unfolded_batch_norms``, a list
    of names with reasons.

    Raises
    ------
    NumericsError
        If a running variance gives no finite factor.
    """
    if not has_op(mod, "relax.nn.batch_norm"):
        return mod
    folder = _Folder(mod)
    new = folder.run()
    return with_meta(new, unfolded_batch_norms=folder.kept) if folder.kept else new
