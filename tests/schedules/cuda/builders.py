"""Kernels for CUDA, run by the emulator and compared with the reference executor."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm.target import Target

from tests.cuda_emulator import Uninitialized
from tests.cuda_emulator.prim_func import run_prim_func
from tvm_q4._compat import T, tirx
from tvm_q4.cuda_target import CudaTarget, family_of_arch
from tvm_q4.layouts import physical_shape, to_logical, to_physical
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.relay_passes.lower_to_tir import Lowered, LoweredCall, lower_to_tir
from tvm_q4.schedules.cuda.kernel import cuda_func
from tvm_q4.schedules.cuda.pipeline import tir_pipeline
from tvm_q4.schedules.cuda.rules import RULES
from tvm_q4.schedules.layer import Layer, Tensor
from tvm_q4.schedules.rule import Params, ScheduleRule

Change = Callable[[str], str]


@cache
def cuda(arch: int) -> Target:
    """Target of the kernels for one arch."""
    return CudaTarget((arch,)).family_target(family_of_arch(arch))


class Reader(ScheduleRule):
    """Convolutions that `check` does not run: they give the tensors before them halos."""

    name = "reader"

    def applies(self, layer: Layer, target: Target) -> bool:
        return layer.kind == "conv2d"

    def space(self, layer: Layer, target: Target) -> list[Params]:
        return [{}]

    def predict(self, layer: Layer, target: Target, params: Params) -> float:
        return 0.0

    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> tirx.PrimFunc:
        return cuda_func(symbol, target, lambda: T.evaluate(0))


def lower(
    mod: tvm.IRModule,
    arch: int,
    rules: list[ScheduleRule] | None = None,
    prepare: tvm.transform.Pass | None = None,
) -> Lowered:
    """Kernels and calls of an integer-stage module; `prepare` is a pass over the fused one."""
    fused = FuseEpilogue(mod)
    fused = prepare(fused) if prepare else fused
    return lower_to_tir(fused, cuda(arch), rules or list(RULES), lambda _: None)


def check(
    mod: tvm.IRModule,
    *inputs: NDArray,
    arch: int,
    rules: list[ScheduleRule] | None = None,
    change: Change | None = None,
    kinds: Collection[str] = (),
    prepare: tvm.transform.Pass | None = None,
) -> tuple[Lowered, dict[str, int]]:
    """Require the reference executor's value of every tensor, bit for bit, halos included.

    What a movement between layers makes has no name in the trace; its readers show whether it is
    right.

    With `kinds` only layers of those kinds are run. Returns the lowered module and how often each
    instruction ran, over all kernels and inputs.
    """
    lowered = lower(mod, arch, rules, prepare)
    reference = ReferenceExecutor(mod)
    total: dict[str, int] = {}
    for x in inputs:
        tensors = {"input": x, "x": x} | reference.trace(x)
        tensors[f"{lowered.calls[-1].layer.inputs[0].name}.plain"] = reference.run(x)
        for call in lowered.calls:
            if isinstance(call.choice.rule, Reader) or (kinds and call.layer.kind not in kinds):
                continue
            for name, count in _check_call(lowered, call, tensors, arch, change).items():
                total[name] = total.get(name, 0) + count
    return lowered, total


def run_call(
    lowered: Lowered,
    call: LoweredCall,
    inputs: list[NDArray],
    arch: int,
    change: Change | None = None,
) -> tuple[list[NDArray], dict[str, int]]:
    """Outputs of one kernel call in the emulator, as they lie in memory, and instruction counts."""
    rule, layer, params = call.choice.rule, call.layer, call.choice.params
    target = cuda(arch)
    args: list[object] = [*inputs, *rule.constants(layer, target, params)]
    scratch = rule.workspace(layer, target, params)
    args += [Uninitialized(np.zeros(shape, dtype)) for shape, dtype in scratch]
    outputs = [np.zeros(t.physical_shape, t.physical_dtype) for _, t in layer.outputs]
    args += [Uninitialized(out) for out in outputs]
    counts = run_prim_func(
        lowered.mod[call.kernel], args, f"sm_{arch}", pipeline=tir_pipeline(), change=change
    )
    return outputs, counts


def _check_call(
    lowered: Lowered,
    call: LoweredCall,
    tensors: dict[str, NDArray],
    arch: int,
    change: Change | None,
) -> dict[str, int]:
    rng = np.random.default_rng(0)
    inputs = [physical(t, tensors[t.name], rng) for t in call.layer.inputs]
    outputs, counts = run_call(lowered, call, inputs, arch, change)
    for (_, tensor), found in zip(call.layer.outputs, outputs, strict=True):
        values = to_logical(found, tensor.shape[: tensor.rank], layout_json(tensor))
        expected = tensors.setdefault(tensor.name, values.astype(tensor.dtype))
        np.testing.assert_array_equal(values.astype(expected.dtype), expected, tensor.name)
        if tensor.layout.bits:
            halo = found[outside(tensor)]
            filled = np.broadcast_to(fill_words(tensor), halo.shape)
            np.testing.assert_array_equal(halo, filled, tensor.name)
    return counts


def layout_json(tensor: Tensor) -> dict[str, object]:
    """A tensor's layout as a library's metadata has it."""
    packed = tensor.layout.bits and tensor.range is not None
    return tensor.layout.to_json() | ({"dtype": tensor.range.dtype} if packed else {})


def physical(tensor: Tensor, values: NDArray, rng: np.random.Generator) -> NDArray:
    """A tensor as it lies in memory, noise in padded channels."""
    layout = layout_json(tensor)
    values = values.reshape(tensor.shape[: tensor.rank])
    if not tensor.layout.bits:
        return to_physical(values, layout)
    assert tensor.range is not None
    noise_shape = (*tensor.shape[:1], tensor.layout.channels, *tensor.shape[2:])
    noisy = rng.integers(tensor.range.lo, tensor.range.hi, noise_shape, endpoint=True)
    noisy[:, : tensor.shape[1]] = values.reshape(tensor.shape)
    out = to_physical(noisy.astype(values.dtype), layout, tensor.fill)
    assert out.shape == physical_shape(tensor.shape, layout)
    return out


def outside(tensor: Tensor) -> NDArray[np.bool_]:
    """Mask [N, H, W] of a tensor's halo."""
    top, left, _, _ = tensor.layout.halo
    _, _, h, w = tensor.shape
    outside = np.ones(tensor.physical_shape[:3], bool)
    outside[:, top : top + h, left : left + w] = False
    return outside


def fill_words(tensor: Tensor) -> NDArray[np.int32]:
    """Words of one pixel of a tensor's halo."""
    layout = layout_json(tensor) | {"halo": [0, 0, 0, 0]}
    one = np.full((1, tensor.layout.channels, 1, 1), tensor.fill, tensor.dtype)
    return to_physical(one, layout)[0, 0, 0]
