"""FuseEpilogue: which operators share a kernel, and that values stay what they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.modules import full_range, module
from tvm_q4 import ops
from tvm_q4.meta import model_meta, with_meta
from tvm_q4.quant import INT32_MAX, INT32_MIN
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes._rewrite import dataflow_bindings, op_name
from tvm_q4.relay_passes.fuse_epilogue import FUSED_ATTR, FuseEpilogue

SHAPE = (1, 4, 5, 6)
RNG = np.random.default_rng(3)
Emit = Callable[[relax.BlockBuilder, relax.Var], relax.Expr]


def _module(emit: Emit) -> tvm.IRModule:
    return module(SHAPE, "uint8", emit)


def _conv(b: relax.BlockBuilder, x: relax.Expr, name: str) -> relax.Var:
    w = RNG.integers(-8, 8, (4, 4, 1, 1))
    return b.emit(ops.conv2d(x, w, [3], name=name, strides=[1, 1], padding=[0] * 4))


def _narrow(b: relax.BlockBuilder, x: relax.Expr, name: str, shift: int = 4) -> relax.Var:
    return b.emit(ops.requantize(x, [1], [shift], name=name, lo=0, hi=255, dtype="uint8"))


def _wide(b: relax.BlockBuilder, x: relax.Expr, name: str) -> relax.Var:
    how = {"lo": INT32_MIN, "hi": INT32_MAX, "dtype": "int32"}
    return b.emit(ops.requantize(x, [5], [1], name=name, **how))


def _sum(b: relax.BlockBuilder, lhs: relax.Expr, rhs: relax.Expr, name: str) -> relax.Var:
    how = {"form": "two_sided", "lo": 0, "hi": 255, "dtype": "uint8"}
    return b.emit(ops.add(lhs, rhs, [1], [3], [1], [2], name=name, **how))


def _groups(mod: tvm.IRModule) -> list[list[str]]:
    """Tensors that each call of main computes, in order of execution."""
    out = []
    for binding in dataflow_bindings(mod["main"]):
        if isinstance(binding.value, relax.Call) and isinstance(binding.value.op, tvm.ir.GlobalVar):
            calls = [b.value for b in dataflow_bindings(mod[binding.value.op])]
            out.append([str(c.attrs["name"]) for c in calls if ops.is_q4(c)])
    return out


def _results(mod: tvm.IRModule, name: str) -> list[str]:
    """Types of the results of the call that computes the tensor `name`."""
    for binding in dataflow_bindings(mod["main"]):
        call = binding.value
        if isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar):
            calls = [b.value for b in dataflow_bindings(mod[call.op])]
            if name in [str(c.attrs["name"]) for c in calls if ops.is_q4(c)]:
                single = isinstance(call.ty, relax.TensorType)
                return [str(t.dtype) for t in ([call.ty] if single else call.ty.fields)]
    raise AssertionError(f"{name} is computed nowhere")


def _check_values(before: tvm.IRModule, after: tvm.IRModule) -> None:
    """Every tensor is what it was; the module is well formed and calls private fused functions."""
    relax.analysis.well_formed(after)
    x = full_range(RNG, "uint8", SHAPE)
    old, new = ReferenceExecutor(before), ReferenceExecutor(after)
    np.testing.assert_array_equal(old.run(x), new.run(x))
    expected, found = old.trace(x), new.trace(x)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name])
    for gvar, func in after.functions_items():
        if gvar.name_hint != "main":
            assert func.attrs[FUSED_ATTR] == 1
            assert "global_symbol" not in func.attrs


def _fused(emit: Emit) -> tvm.IRModule:
    before = _module(emit)
    after = FuseEpilogue(before)
    _check_values(before, after)
    return after


def _function(
    builder: relax.BlockBuilder, name: str, params: Sequence[relax.Var], calls: Sequence[Callable]
) -> tvm.ir.GlobalVar:
    """A private fused function: each of `calls` makes a call from the values before it."""
    inner = relax.BlockBuilder()
    with inner.function("body", list(params), attrs={FUSED_ATTR: 1}, private=True):
        with inner.dataflow():
            values: list[relax.Expr] = list(params)
            for make in calls:
                values.append(inner.emit(make(*values)))
            out = inner.emit_output(values[-1])
        inner.emit_func_output(out)
    return builder.add_func(inner.get()["body"], name)


def test_expected_module() -> None:
    w = RNG.integers(-8, 8, (4, 4, 1, 1))

    def conv(x: relax.Expr, *_: relax.Expr) -> relax.Call:
        return ops.conv2d(x, w, [3], name="c", strides=[1, 1], padding=[0] * 4)

    def add(_x: relax.Expr, skip: relax.Expr, acc: relax.Expr) -> relax.Call:
        how = {"form": "two_sided", "lo": 0, "hi": 255, "dtype": "uint8"}
        return ops.add(acc, skip, [1], [3], [1], [2], name="sum", **how)

    def pool(x: relax.Expr) -> relax.Call:
        how = {"pool_size": [2, 2], "strides": [1, 1], "padding": [1, 1, 0, 0]}
        return ops.max_pool2d(x, name="p", **how)

    def before(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        pooled = b.emit(pool(x))
        return b.emit(add(x, pooled, b.emit(conv(x))))

    x = relax.Var("x", relax.TensorType(SHAPE, "uint8"))
    expected = relax.BlockBuilder()

    def tensors(*names: str) -> list[relax.Var]:
        return [relax.Var(n, relax.TensorType(SHAPE, "uint8")) for n in names]

    f_pool = _function(expected, "fused_p", tensors("a"), [pool])
    f_conv = _function(expected, "fused_c", tensors("a", "b"), [conv, add])
    with expected.function("main", [x]):
        with expected.dataflow():
            pooled = expected.emit(relax.Call(f_pool, [x]))
            result = expected.emit_output(expected.emit(relax.Call(f_conv, [x, pooled])))
        expected.emit_func_output(result)
    tvm.ir.assert_structural_equal(
        FuseEpilogue(_module(before)), expected.get(), map_free_vars=True
    )


def test_float_module_is_unchanged() -> None:
    mod = module(
        SHAPE, "float32", lambda b, x: b.emit(relax.op.nn.relu(b.emit(relax.op.add(x, x))))
    )
    assert FuseEpilogue(mod).same_as(mod)


def test_facts_of_the_module_are_kept() -> None:
    mod = with_meta(_module(lambda b, x: _narrow(b, x, "y")), name="net")
    assert model_meta(FuseEpilogue(mod)) == {"name": "net"}


def test_two_outputs_and_a_chained_third() -> None:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        acc = _conv(b, x, "c")
        wide, narrow = _narrow(b, acc, "y", 2), _narrow(b, acc, "y.q2", 6)
        chained = _narrow(b, wide, "y.q3", 1)
        parts = [
            _narrow(b, _conv(b, t, f"c{i}"), f"z{i}") for i, t in enumerate((wide, narrow, chained))
        ]
        return b.emit(ops.concat(parts, name="joined"))

    mod = _fused(emit)
    assert _groups(mod) == [
        ["c", "y", "y.q2", "y.q3"], ["c0", "z0"], ["c1", "z1"], ["c2", "z2"], ["joined"],
    ]  # fmt: skip
    assert _results(mod, "c") == ["uint8"] * 3


def test_accumulators_that_another_layer_reads_leave() -> None:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        acc = _conv(b, x, "c")
        other = _conv(b, _narrow(b, acc, "y"), "c2")
        return _sum(b, other, acc, "sum")

    mod = _fused(emit)
    assert _groups(mod) == [["c", "y"], ["c2", "sum"]]
    assert _results(mod, "c") == ["int32", "uint8"]
    assert _results(mod, "c2") == ["uint8"]


def test_returned_accumulator_leaves() -> None:
    mod = _fused(lambda b, x: _conv(b, _narrow(b, _conv(b, x, "c"), "y"), "c2"))
    assert _results(mod, "c2") == ["int32"]


def test_a_sum_does_not_join_the_group_that_its_other_side_needs() -> None:
    # Joining "a", whose accumulator it reads, would make "a" wait for "b", which waits for "a".
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        acc = _conv(b, x, "a")
        other = _narrow(b, _conv(b, _narrow(b, acc, "a.out"), "b"), "b.out")
        return _sum(b, acc, other, "sum")

    mod = _fused(emit)
    assert _groups(mod) == [["a", "a.out"], ["b", "b.out", "sum"]]


def test_cycles_through_several_groups_are_seen() -> None:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        acc = _conv(b, x, "a")
        y = _narrow(b, acc, "a.out")
        for i in range(3):
            y = _narrow(b, _conv(b, y, f"b{i}"), f"b{i}.out")
        pooled = b.emit(relax.op.reshape(y, SHAPE))  # no group that could take the sum
        return _sum(b, acc, pooled, "sum")

    mod = _fused(emit)
    assert _groups(mod)[-1] == ["sum"]
    assert _results(mod, "a") == ["int32", "uint8"]


def test_a_group_may_wait_for_a_later_operand() -> None:
    # The shortcut's convolution comes second in the program and runs first.
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        acc = _conv(b, x, "main")
        shortcut = _narrow(b, _conv(b, x, "shortcut"), "shortcut.out")
        return _sum(b, acc, shortcut, "sum")

    assert _groups(_fused(emit)) == [["shortcut", "shortcut.out"], ["main", "sum"]]


def test_widening_requantize_is_pulled_into_each_consumer() -> None:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        skip = _wide(b, _narrow(b, x, "y"), "skip")
        one = _sum(b, _conv(b, x, "a"), skip, "one")
        return _sum(b, _conv(b, one, "b"), skip, "two")

    mod = _fused(emit)
    assert _groups(mod) == [["y"], ["a", "skip", "one"], ["b", "skip", "two"]]
    assert _results(mod, "y") == ["uint8"]


def test_widening_chain_without_an_anchor() -> None:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        return _narrow(b, _wide(b, _wide(b, x, "w1"), "w2"), "y")

    assert _groups(_fused(emit)) == [["w1", "w2", "y"]]


def test_widening_requantize_that_is_returned_or_moved_is_stored() -> None:
    assert _groups(_fused(lambda b, x: _wide(b, x, "w"))) == [["w"]]

    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        moved = b.emit(relax.op.reshape(_wide(b, x, "w"), SHAPE))
        return _sum(b, _conv(b, x, "a"), moved, "sum")

    assert _groups(_fused(emit)) == [["w"], ["a", "sum"]]


def test_quantize_and_concat_take_no_epilogue() -> None:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        return _narrow(b, b.emit(ops.concat([x, x], name="joined")), "y")

    assert _groups(_fused(emit)) == [["joined"], ["y"]]
    mod = module(
        SHAPE,
        "float32",
        lambda b, x: _narrow(
            b, b.emit(ops.quantize(x, 0.1, 0, name="q", qmin=0, qmax=255, dtype="uint8")), "y"
        ),
    )
    assert _groups(FuseEpilogue(mod)) == [["q"], ["y"]]


def test_float_operators_stay_in_main() -> None:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        real = b.emit(ops.dequantize(_conv(b, x, "c"), 0.5, 0, name="c.dq", qmin=-1, qmax=1))
        return b.emit(relax.op.nn.relu(real))

    mod = _fused(emit)
    assert _groups(mod) == [["c", "c.dq"]]
    assert [op_name(b.value) for b in dataflow_bindings(mod["main"])].count("relax.nn.relu") == 1


def test_unread_layers_are_dropped() -> None:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        _narrow(b, _conv(b, x, "unread"), "unread.out")
        return _narrow(b, _conv(b, x, "c"), "y")

    assert _groups(_fused(emit)) == [["c", "y"]]


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_graphs_stay_acyclic_and_exact(data: st.DataObject) -> None:
    def emit(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        narrow, wide = [x], []
        for i in range(data.draw(st.integers(1, 14))):
            kind = data.draw(st.sampled_from(["conv", "narrow", "narrow", "sum", "sum", "wide"]))
            if kind == "conv":
                wide.append(_conv(b, data.draw(st.sampled_from(narrow)), f"t{i}"))
            elif kind == "wide":
                wide.append(_wide(b, data.draw(st.sampled_from(narrow)), f"t{i}"))
            else:
                every = narrow + wide
                sides = [data.draw(st.sampled_from(every)) for _ in range(2)]
                made = (
                    _narrow(b, sides[0], f"t{i}") if kind == "narrow" else _sum(b, *sides, f"t{i}")
                )
                narrow.append(made)
        return (narrow + wide)[data.draw(st.integers(-3, -1)) % len(narrow + wide)]

    _fused(emit)
