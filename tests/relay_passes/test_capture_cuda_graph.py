"""CaptureCudaGraph: plain functions stay, twins launch one graph, families do not collide."""

from __future__ import annotations

from functools import cache

import numpy as np
import tvm
from tvm import relax

from tests.schedules.builders import U8, module, requantized, weights
from tests.schedules.cuda.builders import cuda, lower
from tvm_q4 import ops
from tvm_q4.relay_passes._rewrite import dataflow_bindings
from tvm_q4.relay_passes.capture_cuda_graph import capture_cuda_graph, graph_name
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.relay_passes.lower_to_tir import lower_to_tir
from tvm_q4.relay_passes.pipeline import CALL_PHASES, to_vm
from tvm_q4.relay_passes.plan_memory import PlanMemory
from tvm_q4.schedules.cuda.rules import RULES


def _network(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    rng = np.random.default_rng(0)
    for i in range(3):
        w = weights(rng, 8, (16, 16, 1, 1))
        acc = b.emit(ops.conv2d(x, w, [0], name=f"c{i}", strides=[1, 1], padding=[0] * 4))
        x = requantized(b, acc, rng, U8, name=f"y{i}")
    return x


@cache
def _planned() -> tvm.IRModule:
    lowered = lower(module((1, 16, 4, 4), U8, _network), 80)
    with cuda(80):
        return PlanMemory(tvm.transform.Sequential([p() for p in CALL_PHASES])(lowered.mod))


def _called(func: relax.Function) -> list[str]:
    values = [b.value for b in dataflow_bindings(func)]
    calls = [v for v in values if isinstance(v, relax.Call)]
    return [c.op.name_hint for c in calls if isinstance(c.op, relax.GlobalVar)]


def test_name() -> None:
    assert graph_name("main_quantized_sm80", "_sm80") == "main_quantized_graph_sm80"
    assert graph_name("main", "") == "main_graph"


def test_plain_function_is_unchanged() -> None:
    planned = _planned()
    captured = capture_cuda_graph(planned, "")
    tvm.ir.assert_structural_equal(captured["main"], planned["main"])


def test_twin_launches_everything_between_the_callers_tensors_as_a_graph() -> None:
    planned = _planned()
    captured = capture_cuda_graph(planned, "")
    everything = _called(planned["main"])
    alone = [n for n in _called(captured["main_graph"]) if n.startswith("q4_")]
    inside = _called(captured["main_graph_cuda_graph_capture"])
    assert alone == [everything[0], everything[-1]]
    assert inside == everything[1:-1]
    text = captured["main_graph"].script()
    assert "vm.builtin.cuda_graph.run_or_capture" in text
    assert "vm.builtin.cuda_graph.get_cached_alloc" in text


def test_names_of_families_differ() -> None:
    mod = module((1, 16, 4, 4), U8, _network)
    names: list[str] = []
    for arch in (75, 80, 90):
        suffix = f"_sm{arch}"
        lowered = lower_to_tir(FuseEpilogue(mod), cuda(arch), RULES, lambda _: None, suffix)
        vm, _ = to_vm(lowered.mod, cuda(arch), suffix=suffix)
        found = [gv.name_hint for gv in vm.functions]
        assert all(suffix in name for name in found)
        names += found
    assert len(set(names)) == len(names)
