"""FuseEpilogue: group each anchor (convolution, linear, pool) with the element-wise ops after it.

A group becomes a private Relax function (attribute ``q4.fused``) whose body is still q4 operators,
so the reference executor runs the fused module as it runs the unfused one. Its int32 accumulator
never leaves the group unless something outside reads it. A requantize that widens (a narrow tensor
brought to int32, as NVIDIA's skip) is pulled into its consumers instead of being stored.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4.relay_passes._rewrite import dataflow_bindings, substitute, variables

FUSED_ATTR = "q4.fused"
_ANCHORS = ("conv2d", "dense", "max_pool2d", "avg_pool2d")
_ELEMENTWISE = ("requantize", "add", "dequantize")
_LEAVES = ("quantize", "concat")


class _Grouper:
    """Assigns a group to every binding and keeps the graph between groups acyclic."""

    def __init__(self, bindings: list[relax.VarBinding]) -> None:
        self.bindings = bindings
        self.index = {b.var: i for i, b in enumerate(bindings)}
        self.operands = [
            [self.index[v] for v in variables(b.value) if v in self.index] for b in bindings
        ]
        self.group: dict[int, int] = {}
        self.inlined: set[int] = set()
        self.needs: dict[int, set[int]] = {}
        self.open: set[int] = set()

    def run(self, forced: set[int]) -> None:
        for i, binding in enumerate(self.bindings):
            value = binding.value
            if i not in forced and self._widens(value):
                self.inlined.add(i)
            elif any(ops.is_q4(value, k) for k in _ELEMENTWISE):
                self._place(i)
            else:
                self._start(i, accepts=any(ops.is_q4(value, k) for k in _ANCHORS))

    def _widens(self, value: relax.Expr) -> bool:
        return (
            ops.is_q4(value, "requantize")
            and str(value.ty.dtype) == "int32"
            and isinstance(value.args[0], relax.Var)
            and str(value.args[0].ty.dtype) != "int32"
        )

    def _sources(self, i: int) -> list[int]:
        """Operands of binding `i`, seen through inlined requantizes."""
        out: list[int] = []
        for j in self.operands[i]:
            out.extend(self._sources(j) if j in self.inlined else [j])
        return out

    def _start(self, i: int, accepts: bool) -> None:
        self.group[i] = i
        self.needs[i] = {self.group[j] for j in self._sources(i)}
        if accepts:
            self.open.add(i)

    def _place(self, i: int) -> None:
        direct = [
            j for j in self.operands[i] if j not in self.inlined and self.group[j] in self.open
        ]
        for j in sorted(direct, key=self._preference, reverse=True):
            g = self.group[j]
            others = {self.group[k] for k in self._sources(i)} - {g}
            if not any(self._reaches(o, g) for o in others):
                self.group[i] = g
                self.needs[g] |= others
                return
        self._start(i, accepts=True)

    def _preference(self, j: int) -> tuple[bool, int]:
        """Where to join: int32 operands, which would else be stored, then the latest group."""
        return str(self.bindings[j].var.ty.dtype) == "int32", self.group[j]

    def _reaches(self, start: int, goal: int) -> bool:
        stack, seen = [start], set()
        while stack:
            g = stack.pop()
            if g == goal:
                return True
            if g not in seen:
                seen.add(g)
                stack.extend(self.needs[g])
        return False

    def order(self) -> list[int]:
        """Groups so that each follows those it needs; ties by program order."""
        done: list[int] = []
        seen: set[int] = set()

        def visit(g: int) -> None:
            if g in seen:
                return
            seen.add(g)
            for n in sorted(self.needs[g]):
                visit(n)
            done.append(g)

        for g in sorted(self.needs):
            visit(g)
        return done


def _escaping(grouper: _Grouper, result: relax.Expr) -> set[int]:
    """Bindings whose value is read outside their own group, or is returned."""
    out = {grouper.index[v] for v in variables(result) if v in grouper.index}
    for i in range(len(grouper.bindings)):
        if i in grouper.inlined:
            continue
        for j in grouper._sources(i):
            if grouper.group[j] != grouper.group[i]:
                out.add(j)
    return out


def _forced(bindings: list[relax.VarBinding], result: relax.Expr) -> set[int]:
    """Widening requantizes that must be stored: not only element-wise q4 operators read them."""
    index = {b.var: i for i, b in enumerate(bindings)}
    out = {index[v] for v in variables(result) if v in index}
    for b in bindings:
        if not any(ops.is_q4(b.value, k) for k in _ELEMENTWISE):
            out |= {index[v] for v in variables(b.value) if v in index}
    return out


class _Emitter:
    """Writes one group as a private function and its call."""

    def __init__(self, grouper: _Grouper, builder: relax.BlockBuilder) -> None:
        self.grouper = grouper
        self.builder = builder
        self.env: dict[relax.Var, relax.Expr] = {}

    def outside(self, expr: relax.Expr) -> relax.Expr:
        """`expr` with variables of the old function replaced by those of the new one."""
        return substitute(expr, lambda var: self.env[var])

    def single(self, i: int) -> None:
        binding = self.grouper.bindings[i]
        value = self.outside(binding.value)
        alias = isinstance(value, relax.Var)
        self.env[binding.var] = (
            value if alias else self.builder.emit(value, name_hint=binding.var.name)
        )

    def group(self, members: list[int], escaping: list[int]) -> None:
        g = self.grouper
        members = self._with_inlined(members)
        inside = {g.bindings[i].var for i in members}
        external = list(
            dict.fromkeys(
                v for i in members for v in variables(g.bindings[i].value) if v not in inside
            )
        )
        func = self._function(members, external, escaping)
        anchor = ops.attrs_of(g.bindings[members[0]].value)["name"]
        name = "fused_" + "".join(c if c.isalnum() else "_" for c in anchor)
        gvar = self.builder.add_func(func, name)
        call = self.builder.emit(relax.Call(gvar, [self.env[v] for v in external]))
        for k, i in enumerate(escaping):
            item = call if len(escaping) == 1 else self.builder.emit(relax.TupleGetItem(call, k))
            self.env[g.bindings[i].var] = item

    def _with_inlined(self, members: list[int]) -> list[int]:
        g = self.grouper
        extra: set[int] = set()
        stack = [j for i in members for j in g.operands[i] if j in g.inlined]
        while stack:
            i = stack.pop()
            extra.add(i)
            stack.extend(j for j in g.operands[i] if j in g.inlined)
        if any(ops.is_q4(g.bindings[members[0]].value, k) for k in _ANCHORS):
            return members[:1] + sorted(set(members[1:]) | extra)
        return sorted(set(members) | extra)

    def _function(
        self, members: list[int], external: list[relax.Var], escaping: list[int]
    ) -> relax.Function:
        g = self.grouper
        inner = relax.BlockBuilder()
        params = {v: relax.Var(v.name, v.ty) for v in external}
        env: dict[relax.Var, relax.Expr] = dict(params)
        with inner.function("body", list(params.values()), attrs={FUSED_ATTR: 1}, private=True):
            with inner.dataflow():
                for i in members:
                    b = g.bindings[i]
                    args = [env.get(a, a) if isinstance(a, relax.Var) else a for a in b.value.args]
                    env[b.var] = inner.emit(relax.Call(b.value.op, args, b.value.attrs))
                outs = [inner.emit_output(env[g.bindings[i].var]) for i in escaping]
            inner.emit_func_output(outs[0] if len(outs) == 1 else relax.Tuple(outs))
        return inner.get()["body"]


def _rebuild(mod: tvm.IRModule, grouper: _Grouper) -> tvm.IRModule:
    main = mod["main"]
    escaping = _escaping(grouper, main.body.body)
    members: dict[int, list[int]] = {}
    for i, g in sorted(grouper.group.items()):
        members.setdefault(g, []).append(i)
    builder = relax.BlockBuilder()
    emitter = _Emitter(grouper, builder)
    params = [relax.Var(p.name, p.ty) for p in main.params]
    emitter.env.update(zip(main.params, params, strict=True))
    with builder.function("main", params):
        with builder.dataflow():
            for g in grouper.order():
                first = grouper.bindings[g].value
                if g in grouper.open:
                    if kept := [i for i in members[g] if i in escaping]:
                        emitter.group(members[g], kept)
                elif any(ops.is_q4(first, k) for k in _LEAVES):
                    emitter.group([g], [g])
                else:
                    emitter.single(g)
            result = builder.emit_output(emitter.outside(main.body.body))
        builder.emit_func_output(result)
    new = builder.get()
    return new.with_attrs(dict(mod.attrs)) if mod.attrs else new


@tvm.transform.module_pass(opt_level=0, name="FuseEpilogue")
def FuseEpilogue(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
    """Group q4 operators of ``main`` into private functions; a module without any is unchanged."""
    bindings = dataflow_bindings(mod["main"])
    if not any(ops.is_q4(b.value) for b in bindings):
        return mod
    grouper = _Grouper(bindings)
    grouper.run(_forced(bindings, mod["main"].body.body))
    return _rebuild(mod, grouper)
