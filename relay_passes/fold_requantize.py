"""FoldRequantize: remove and join requantizations where every integer stays the same.

* A requantization that changes no value (ratio 1, range not narrower) is its input.
* A clamp of what another requantization or add has just clamped joins it; so does an integer ReLU.
* A max-pool runs on the narrower side of a requantization: rounding and clamping are monotone, so
  the maximum may be taken before or after.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.ranges import value_ranges
from tvm_q4.relay_passes._rewrite import MainRewriter, Names, has_op, names_in, use_counts


class _Folder(MainRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.names = Names(names_in(mod))
        self.calls: dict[relax.Expr, relax.Call] = {}
        self.uses: dict[relax.Expr, int] = {}
        self.changed = False
        self._old_ranges = value_ranges(mod)
        self.ranges: dict[relax.Expr, IntRange] = {
            new: self._old_ranges[old] for old, new in self.env.items() if old in self._old_ranges
        }
        self._old_uses = use_counts(self.main)

    def visit(self, binding: relax.VarBinding) -> relax.Expr:
        folded = self._fold(binding)
        new = self.keep(binding) if folded is None else folded
        self.changed |= folded is not None
        # A folded identity makes two old variables one; both their readers then read it.
        self.uses[new] = self.uses.get(new, 1) - 1 + self._old_uses.get(binding.var, 0)
        if binding.var in self._old_ranges:
            self.ranges[new] = self._old_ranges[binding.var]
        return new

    def emit(self, expr: relax.Expr, hint: str) -> relax.Var:
        var = super().emit(expr, hint)
        self.calls[var] = expr
        return var

    def _fold(self, binding: relax.VarBinding) -> relax.Expr | None:
        call = binding.value
        if ops.is_q4(call, "requantize"):
            x = self.resolve(call.args[0])
            for rule in (self._identity, self._clamp, self._pool_after):
                folded = rule(call, x)
                if folded is not None:
                    return folded
        elif ops.is_q4(call, "max_pool2d"):
            return self._pool_before(call, self.resolve(call.args[0]))
        return None

    def _identity(self, call: relax.Call, x: relax.Expr) -> relax.Expr | None:
        a, known = call.attrs, self.ranges.get(x)
        if not _is_clamp(call) or known is None or str(x.ty.dtype) != str(a["dtype"]):
            return None
        return x if int(a["lo"]) <= known.lo and known.hi <= int(a["hi"]) else None

    def _clamp(self, call: relax.Call, x: relax.Expr) -> relax.Expr | None:
        made = self._made_for(x, "requantize", "add")
        if not _is_clamp(call) or made is None:
            return None
        before, after = ops.attrs_of(made), ops.attrs_of(call)
        lo, hi = max(before["lo"], after["lo"]), min(before["hi"], after["hi"])
        if lo > hi:
            return None
        joined = before | {k: after[k] for k in ("name", "dtype")} | {"lo": lo, "hi": hi}
        return self.emit_q4(_rebuilt(made, made.args, joined))

    def _pool_after(self, call: relax.Call, x: relax.Expr) -> relax.Expr | None:
        """``requantize(pool(wide))`` becomes ``pool(requantize(wide))`` to a narrower type."""
        pool = self._made_for(x, "max_pool2d")
        if pool is None or not _is_monotone(call):
            return None
        a = ops.attrs_of(call)
        wide = self.ranges.get(pool.args[0])
        if wide is None or IntRange(a["lo"], a["hi"]).bits >= wide.bits:
            return None
        narrow = _rebuilt(
            call, [pool.args[0], *call.args[1:]], a | {"name": self.names.derive(a["name"])}
        )
        moved = ops.attrs_of(pool) | {"name": a["name"], "dtype": a["dtype"]}
        return self.emit_q4(_rebuilt(pool, [self.emit_q4(narrow)], moved))

    def _pool_before(self, call: relax.Call, x: relax.Expr) -> relax.Expr | None:
        """``pool(requantize(narrow))`` becomes ``requantize(pool(narrow))`` to a wider type."""
        made = self._made_for(x, "requantize")
        if made is None or not _is_monotone(made):
            return None
        narrow, a = self.ranges.get(made.args[0]), ops.attrs_of(made)
        if narrow is None or narrow.bits >= IntRange(a["lo"], a["hi"]).bits:
            return None
        name = str(call.attrs["name"])
        moved = {"name": self.names.derive(name), "dtype": str(made.args[0].ty.dtype)}
        pool = self.emit_q4(_rebuilt(call, [made.args[0]], ops.attrs_of(call) | moved))
        return self.emit_q4(_rebuilt(made, [pool, *made.args[1:]], a | {"name": name}))

    def _made_for(self, x: relax.Expr, *kinds: str) -> relax.Call | None:
        """The call that makes `x` for one reader alone, if it is of one of the `kinds`."""
        made = self.calls.get(x)
        if self.uses.get(x) != 1 or not any(ops.is_q4(made, k) for k in kinds):
            return None
        return made


def _is_clamp(call: relax.Call) -> bool:
    """Whether a requantization changes nothing but the range."""
    m, e = (ops.const_array(a).astype("int64") for a in call.args[1:3])
    same_zero = int(call.attrs["zero_point"]) == int(call.attrs["in_zero_point"])
    return len(call.args) == 3 and same_zero and bool((m == 1 << e).all())


def _is_monotone(call: relax.Call) -> bool:
    """Whether a requantization keeps the order of a channel's values at all positions."""
    m = ops.const_array(call.args[1])
    return m.ndim == 1 and bool((m >= 0).all())


def _rebuilt(call: relax.Call, args: list[relax.Expr], attrs: dict[str, Any]) -> relax.Call:
    return ops.call(str(call.op.name).removeprefix("q4."), list(args), **attrs)


@tvm.transform.module_pass(opt_level=0, name="FoldRequantize")
def FoldRequantize(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Simplify requantizations exactly; a module in which nothing folds is returned as it is."""
    if not has_op(mod, "q4.requantize"):
        return mod
    folder = _Folder(mod)
    new = folder.run()
    return new if folder.changed else mod
