"""PlanMemory: tensors that live at one time never share bytes; results stay outside the arena."""

from __future__ import annotations

import itertools

import numpy as np
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.modules import module
from tests.schedules.builders import U8, check_network, cpu, lower
from tests.schedules.builders import module as integer_module
from tvm_q4 import ops
from tvm_q4.relay_passes._rewrite import dataflow_bindings, op_name, variables
from tvm_q4.relay_passes.pipeline import CALL_PHASES
from tvm_q4.relay_passes.plan_memory import (
    ALIGNMENT,
    ARENA_ATTR,
    Lifetime,
    PlanMemory,
    assign_offsets,
)

LIFETIMES = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 30), st.integers(0, 12)), max_size=25
)


def _lives(spans: list[tuple[int, int, int]]) -> list[Lifetime]:
    return [Lifetime(size, first, first + length) for size, first, length in spans]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(LIFETIMES)
def test_tensors_that_live_together_do_not_overlap(spans: list[tuple[int, int, int]]) -> None:
    tensors = _lives(spans)
    total = assign_offsets(tensors)
    for a, b in itertools.combinations(tensors, 2):
        if a.first <= b.last and b.first <= a.last:
            assert a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
    for t in tensors:
        assert t.offset >= 0
        assert t.offset % ALIGNMENT == 0
        assert t.offset + t.size <= total
    assert total % ALIGNMENT == 0


@settings(deadline=None, derandomize=True, max_examples=100)
@given(LIFETIMES)
def test_arena_is_between_the_peak_and_the_sum(spans: list[tuple[int, int, int]]) -> None:
    tensors = _lives(spans)
    total = assign_offsets(tensors)
    peak = max(
        (sum(t.size for t in tensors if t.first <= i <= t.last) for i in range(50)), default=0
    )
    rounded = [-(-t.size // ALIGNMENT) * ALIGNMENT for t in tensors]
    assert peak <= total <= sum(rounded)


def test_gaps_are_filled() -> None:
    # Two large tensors of different times and a small one that fits above the shorter-lived.
    big, later, small = Lifetime(640, 0, 2), Lifetime(320, 3, 5), Lifetime(320, 3, 5)
    assert assign_offsets([small, big, later]) == 640
    assert sorted((later.offset, small.offset)) == [0, 320]


def test_nothing_to_place() -> None:
    assert assign_offsets([]) == 0


def _conv(b, x, name, shift=10):
    w = np.ones((16, 16, 3, 3), np.int8)
    acc = b.emit(ops.conv2d(x, w, [0], name=name, strides=[1, 1], padding=[1] * 4))
    how = {"name": f"{name}.out", "lo": 0, "hi": 255, "dtype": "uint8"}
    return b.emit(ops.requantize(acc, [1], [shift], **how))


def _chain(b, x):
    y = _conv(b, x, "c0")
    skip = y
    for i in range(1, 6):
        y = _conv(b, y, f"c{i}")
    how = {"form": "two_sided", "lo": 0, "hi": 255, "dtype": "uint8"}
    return b.emit(ops.add(y, skip, [1], [0], [1], [0], name="sum", **how))


SHAPE = (1, 16, 6, 6)


def _called(mod: tvm.IRModule) -> tvm.IRModule:
    """A lowered module whose calls have their result tensors allocated."""
    lowered = lower(mod, cpu("x86-64")).mod
    with cpu("x86-64"):
        return tvm.transform.Sequential([make() for make in CALL_PHASES])(lowered)


def _allocations(func: relax.Function, name: str) -> list[relax.VarBinding]:
    return [b for b in dataflow_bindings(func) if op_name(b.value) == name]


def test_intermediates_share_one_storage_and_the_result_has_its_own() -> None:
    before = _called(integer_module(SHAPE, U8, _chain))
    after = PlanMemory(before)
    main = after["main"]
    (storage,) = _allocations(main, "relax.memory.alloc_storage")
    placed = _allocations(main, "relax.memory.alloc_tensor")
    (result,) = _allocations(main, "relax.builtin.alloc_tensor")
    assert len(placed) + 1 == len(_allocations(before["main"], "relax.builtin.alloc_tensor"))
    assert all(b.value.args[0].same_as(storage.var) for b in placed)
    assert _reaches(main, main.body.body, result.var)
    assert not any(_reaches(main, main.body.body, b.var) for b in placed)
    size = int(storage.value.args[0].values[0])
    assert int(after.attrs[ARENA_ATTR]) == size
    # Two tensors of 8 x 8 x 16 bytes alternate beside the skip, which has no halo of its own.
    sizes = [8 * 8 * 16] * 3
    assert size <= sum(sizes)


def _reaches(func: relax.Function, result: relax.Expr, var: relax.Var) -> bool:
    """Whether the function's result is `var` or an alias of it."""
    values = {b.var: b.value for b in dataflow_bindings(func)}
    pending = list(variables(result))
    while pending:
        v = pending.pop()
        if v.same_as(var):
            return True
        if v in values and not op_name(values[v]):
            pending.extend(variables(values[v]))
    return False


def test_offsets_are_those_of_live_tensors() -> None:
    main = PlanMemory(_called(integer_module(SHAPE, U8, _chain)))["main"]
    bindings = dataflow_bindings(main)
    spans = []
    for b in _allocations(main, "relax.memory.alloc_tensor"):
        uses = [
            i
            for i, other in enumerate(bindings)
            if any(v.same_as(b.var) for v in variables(other.value))
        ]
        offset = int(b.value.args[1].value)
        size = (
            int(np.prod([int(d) for d in b.var.ty.shape])) * np.dtype(str(b.var.ty.dtype)).itemsize
        )
        spans.append((min(uses), max(uses), offset, offset + size))
    assert len(spans) >= 6
    for (a0, a1, a2, a3), (b0, b1, b2, b3) in itertools.combinations(spans, 2):
        assert a1 < b0 or b1 < a0 or a3 <= b2 or b3 <= a2


def test_module_without_allocations_is_unchanged() -> None:
    mod = module(SHAPE, "float32", lambda b, x: x)
    after = PlanMemory(mod)
    tvm.ir.assert_structural_equal(after["main"], mod["main"])
    assert int(after.attrs[ARENA_ATTR]) == 0


def test_networks_compute_the_same_in_the_arena() -> None:
    x = np.random.default_rng(1).integers(0, 256, SHAPE).astype(np.uint8)
    built = check_network(integer_module(SHAPE, U8, _chain), x, np.zeros_like(x))
    assert built.arena > 0
