"""FuseStemPool: put max-pools into the group of the image's convolution, which they read alone.

The convolution of an image makes the widest tensor of a ResNet, and a max-pool is all that reads it
(one for each precision that it is needed at). On GPUs one kernel does both; see
``schedules/cuda/stem.py``. The module computes the same integers.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4.relay_passes._rewrite import dataflow_bindings, shape_of, substitute
from tvm_q4.relay_passes.fuse_epilogue import FUSED_ATTR

_IMAGE_CHANNELS = 4  # most channels of what counts as an image
_WIDEST = 4  # window or stride of a pool: a block's few threads hold the region of some windows


class _Stem:
    """A convolution's group and the pools that read its results."""

    def __init__(self, mod: tvm.IRModule, bindings: list[relax.VarBinding], at: int) -> None:
        self.mod, self.bindings, self.at = mod, bindings, at
        self.call = bindings[at].value
        self.items: dict[relax.Var, int] = {}
        self.pools: list[tuple[int, int]] = []  # result, binding

    def found(self) -> bool:
        """Whether the group is an image's convolution that pools of one geometry read alone."""
        if not _is_image_convolution(self.mod, self.call):
            return False
        self._find_items()
        readers: dict[int, int] = {}
        geometry = set()
        for i, binding in enumerate(self.bindings):
            if binding.var in self.items:
                continue
            for arg in _operands(binding.value):
                if arg not in self.items:
                    continue
                pool = _pool_of(self.mod, binding.value)
                if pool is None:
                    return False
                readers[self.items[arg]] = i
                geometry.add(str([pool[k] for k in ("pool_size", "strides", "padding")]))
                self.pools.append((self.items[arg], i))
        count = len(set(self.items.values()))
        return len(geometry) == 1 and len(self.pools) == len(readers) == count

    def _find_items(self) -> None:
        var = self.bindings[self.at].var
        if not isinstance(var.ty, relax.TupleType):
            self.items[var] = 0
            return
        for b in self.bindings:
            if isinstance(b.value, relax.TupleGetItem) and b.value.tuple_value.same_as(var):
                self.items[b.var] = b.value.index

    def function(self) -> relax.Function:
        """The merged group: the convolution's operators, then the pools."""
        inner = relax.BlockBuilder()
        old = self.mod[self.call.op]
        params = [relax.Var(p.name, p.ty) for p in old.params]
        env: dict[relax.Var, relax.Expr] = dict(zip(old.params, params, strict=True))
        with inner.function("body", params, attrs={FUSED_ATTR: 1}, private=True):
            with inner.dataflow():
                for b in dataflow_bindings(old):
                    value = substitute(b.value, lambda v: env[v])
                    env[b.var] = value if isinstance(value, relax.Var) else inner.emit(value)
                body = old.body.body
                results = list(body.fields) if isinstance(body, relax.Tuple) else [body]
                outs = []
                for item, i in self.pools:
                    pool = dataflow_bindings(self.mod[self.bindings[i].value.op])[0].value
                    new = relax.Call(pool.op, [env[results[item]]], pool.attrs)
                    outs.append(inner.emit_output(inner.emit(new)))
            inner.emit_func_output(outs[0] if len(outs) == 1 else relax.Tuple(outs))
        return inner.get()["body"]


def _operands(value: relax.Expr) -> list[Any]:
    if isinstance(value, relax.Call):
        return [a for a in value.args if isinstance(a, relax.Var)]
    if isinstance(value, relax.TupleGetItem):
        return [value.tuple_value]
    return [value] if isinstance(value, relax.Var) else []


def _is_image_convolution(mod: tvm.IRModule, value: relax.Expr) -> bool:
    if not isinstance(value, relax.Call) or not isinstance(value.op, relax.GlobalVar):
        return False
    first, *rest = _calls(mod[value.op])
    if not ops.is_q4(first, "conv2d") or len(value.args) != 1:
        return False
    simple = all(ops.is_q4(call, "requantize") for call in rest)
    integer = all(str(v.ty.dtype) in ("int8", "uint8") for v in _results(mod[value.op]))
    attrs = ops.attrs_of(first)
    plain = attrs["groups"] == 1 and attrs["weight_bits"] == 8
    return simple and integer and plain and shape_of(first.args[0])[1] <= _IMAGE_CHANNELS


def _calls(func: relax.Function) -> list[relax.Expr]:
    """What a group computes, without names for the same thing."""
    return [b.value for b in dataflow_bindings(func) if not isinstance(b.value, relax.Var)]


def _results(func: relax.Function) -> list[relax.Var]:
    body = func.body.body
    return list(body.fields) if isinstance(body, relax.Tuple) else [body]


def _pool_of(mod: tvm.IRModule, value: relax.Expr) -> dict[str, Any] | None:
    """Attributes of a group that is one small max-pool without dilation; None for others."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, relax.GlobalVar):
        return None
    calls = _calls(mod[value.op])
    if len(calls) != 1 or not ops.is_q4(calls[0], "max_pool2d"):
        return None
    attrs = ops.attrs_of(calls[0])
    small = max(*attrs["pool_size"], *attrs["strides"]) <= _WIDEST
    return attrs if small and list(attrs["dilation"]) == [1, 1] else None


@tvm.transform.module_pass(opt_level=0, name="FuseStemPool")
def FuseStemPool(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Merge the groups of ``main``; a module without such a convolution is unchanged."""
    bindings = dataflow_bindings(mod["main"])
    for at in range(len(bindings)):
        stem = _Stem(mod, bindings, at)
        if stem.found():
            return _merged(mod, stem)
    return mod


def _merged(mod: tvm.IRModule, stem: _Stem) -> tvm.IRModule:
    main = mod["main"]
    builder = relax.BlockBuilder()
    params = [relax.Var(p.name, p.ty) for p in main.params]
    env: dict[relax.Var, relax.Expr] = dict(zip(main.params, params, strict=True))
    merged = {i for _, i in stem.pools} | {stem.at}
    gvars: dict[str, relax.GlobalVar] = {}

    def emitted(value: relax.Expr, hint: str) -> relax.Var:
        new = substitute(value, lambda v: env[v])
        if isinstance(new, relax.Call) and isinstance(new.op, relax.GlobalVar):
            name = new.op.name_hint
            if name not in gvars:
                gvars[name] = builder.add_func(mod[new.op], name)
            new = relax.Call(gvars[name], new.args, new.attrs)
        return new if isinstance(new, relax.Var) else builder.emit(new, name_hint=hint)

    with builder.function("main", params):
        with builder.dataflow():
            for i, b in enumerate(stem.bindings):
                if i == stem.at:
                    gvar = builder.add_func(stem.function(), stem.call.op.name_hint + "_pool")
                    args = [env[a] for a in stem.call.args]
                    call = builder.emit(relax.Call(gvar, args))
                    for k, (_, at) in enumerate(stem.pools):
                        single = len(stem.pools) == 1
                        item = call if single else builder.emit(relax.TupleGetItem(call, k))
                        env[stem.bindings[at].var] = item
                elif i not in merged and b.var not in stem.items:
                    env[b.var] = emitted(b.value, b.var.name)
            result = builder.emit_output(substitute(main.body.body, lambda v: env[v]))
        builder.emit_func_output(result)
    new = builder.get()
    return new.with_attrs(dict(mod.attrs)) if mod.attrs else new
