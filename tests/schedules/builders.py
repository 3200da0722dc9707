"""Modules of few layers, compiled for a stated CPU and compared with the reference executor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features, llvm_get_system_cpu

from tests.modules import Build
from tests.modules import module as tensor_module
from tvm_q4 import ops
from tvm_q4.meta import with_meta
from tvm_q4.quant import IntRange
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.relay_passes.lower_to_tir import Lowered, LoweredCall, lower_to_tir
from tvm_q4.relay_passes.pipeline import to_vm
from tvm_q4.schedules.cpu import RULES
from tvm_q4.schedules.cpu.conv2d import DirectConv2d
from tvm_q4.schedules.layer import Layer, Tensor
from tvm_q4.schedules.rule import Params, ScheduleRule

U4, S4, U8, S8 = IntRange(0, 15), IntRange(-8, 7), IntRange(0, 255), IntRange(-128, 127)

# The least CPU of each dot form: what it runs on is then what the form needs, no more.
FORM_CPUS = {
    "vnni512": {"mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]},
    "vnni256": {"mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]},
    "maddubs": {"mcpu": "x86-64-v3"},
    "madd": {"mcpu": "x86-64-v3"},
    "generic": {"mcpu": "x86-64"},
}
_TUNING = re.compile(r"slow|fast|false-deps|prefer|no-bypass")


@cache
def cpu(mcpu: str) -> Target:
    """Target of a CPU by LLVM's name."""
    return Target({"kind": "llvm", "mcpu": mcpu})


@cache
def form_target(form: str) -> Target:
    """Target of the least CPU that has a dot form."""
    return Target({"kind": "llvm", **FORM_CPUS[form]})


def host() -> Target:
    """Target of the CPU that runs the tests."""
    return cpu(llvm_get_system_cpu())


def require_host(target: Target) -> None:
    """Skip the test where this CPU lacks an instruction set that `target` may use."""
    needed, present = (
        {str(f) for f in llvm_get_cpu_features(t) if not _TUNING.match(str(f))}
        for t in (target, host())
    )
    if needed - present:
        pytest.skip(f"this CPU lacks {', '.join(sorted(needed - present))}")


class Forced(ScheduleRule):
    """`DirectConv2d` with stated parameters in place of the predicted ones."""

    name = DirectConv2d.name

    def __init__(self, **params: int | str) -> None:
        self._rule, self._params = DirectConv2d(), params

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def applies(self, layer: Layer, target: Target) -> bool:
        return self._rule.applies(layer, target)

    def space(self, layer: Layer, target: Target) -> list[Params]:
        settings = [p | self._params for p in self._rule.space(layer, target)]
        return [min(settings, key=lambda p: self._rule.predict(layer, target, p))]

    def predict(self, layer: Layer, target: Target, params: Params) -> float:
        return self._rule.predict(layer, target, params)

    def schedule(self, layer: Layer, target: Target, params: Params, symbol: str) -> Any:
        return self._rule.schedule(layer, target, params, symbol)

    def constants(self, layer: Layer, target: Target, params: Params) -> list[np.ndarray]:
        return self._rule.constants(layer, target, params)


def forced_rules(**params: int | str) -> list[ScheduleRule]:
    """The CPU's rules with convolution parameters fixed."""
    return [Forced(**params), *RULES[1:]]


def module(
    shape: Sequence[int], values: IntRange, emit: Build, dtype: str | None = None
) -> tvm.IRModule:
    """Integer-stage module of one integer input in the range `values`."""
    mod = tensor_module(shape, dtype or values.dtype, emit)
    return with_meta(mod, input_range=[values.lo, values.hi])


def full_range(
    rng: np.random.Generator, values: IntRange, shape: Sequence[int], dtype: str | None = None
) -> NDArray:
    """Integers over the whole range; both ends occur."""
    out = rng.integers(values.lo, values.hi + 1, shape).astype(dtype or values.dtype)
    out.flat[0], out.flat[-1] = values.lo, values.hi
    return out


def weights(rng: np.random.Generator, bits: int, shape: Sequence[int]) -> NDArray[np.int8]:
    """Weights over the whole range of `bits`."""
    top = 1 << (bits - 1)
    return full_range(rng, IntRange(-top, top - 1), shape, "int8")


def ratios(
    rng: np.random.Generator, channels: int, least: int = 36, most: int = 44
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Per-channel multipliers and shifts as dyadic numbers have them."""
    m = rng.integers(2**30, 2**31, channels, dtype=np.int64).astype(np.int32)
    return m, rng.integers(least, most, channels).astype(np.int32)


def requantized(
    builder: relax.BlockBuilder,
    acc: relax.Expr,
    rng: np.random.Generator,
    out: IntRange = U8,
    name: str = "y",
    **attrs: Any,
) -> relax.Var:
    """`acc` brought to `out` by random per-channel ratios."""
    m, e = ratios(rng, int(acc.ty.shape[1]))
    arguments = {"lo": out.lo, "hi": out.hi, "dtype": out.dtype} | attrs
    return builder.emit(ops.requantize(acc, m, e, name=name, **arguments))


def lower(mod: tvm.IRModule, target: Target, rules: list[ScheduleRule] | None = None) -> Lowered:
    """Kernels and calls of an integer-stage module."""
    return lower_to_tir(FuseEpilogue(mod), target, rules or list(RULES), lambda _signature: None)


class Batch:
    """Kernels of many small modules, compiled at once and run one by one.

    Layers of one signature and one set of parameters share a kernel, across modules too.
    Each kernel gets its inputs from the reference executor's trace, in the layout that it asks for
    and with noise in every padded channel; each of its outputs is compared with the trace.
    """

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or host()
        self.modules: dict[str, tvm.IRModule] = {}
        self.lowered: dict[str, Lowered] = {}
        self._functions: dict[str, tvm.tirx.PrimFunc] = {}
        self._compiled: Any = None

    def add(self, name: str, mod: tvm.IRModule, rules: list[ScheduleRule] | None = None) -> Lowered:
        """Lower one integer-stage module under a name; the first `check` compiles all."""
        assert self._compiled is None, "the batch is compiled already"
        lowered = lower(mod, self.target, rules)
        self.modules[name], self.lowered[name] = mod, lowered
        for call in _computing(lowered):
            func, symbol = lowered.mod[call.kernel], _symbol(call)
            self._functions.setdefault(symbol, func.with_attr("global_symbol", symbol))
        return lowered

    def check(self, name: str, *inputs: NDArray) -> None:
        """Require the reference executor's value of every tensor, bit for bit, halos included."""
        if self._compiled is None:
            require_host(self.target)
            self._compiled = tvm.compile(tvm.IRModule(self._functions), target=self.target)
        reference = ReferenceExecutor(self.modules[name])
        for x in inputs:
            tensors = {"input": x, "x": x} | reference.trace(x)
            for call in _computing(self.lowered[name]):
                _check_call(self._compiled[_symbol(call)], call, tensors, self.target)


def check(
    mod: tvm.IRModule,
    *inputs: NDArray,
    target: Target | None = None,
    rules: list[ScheduleRule] | None = None,
) -> Lowered:
    """`Batch.check` of one module."""
    batch = Batch(target)
    lowered = batch.add("one", mod, rules)
    batch.check("one", *inputs)
    return lowered


def _symbol(call: LoweredCall) -> str:
    """Name of a kernel within a batch: calls of one signature and parameters share it."""
    return "_".join([call.kernel, *map(str, call.choice.params.values())])


def _computing(lowered: Lowered) -> list[LoweredCall]:
    """Calls without the data movement at the network's edges."""
    return [c for c in lowered.calls if c.layer.kind != "gather"]


def _check_call(
    kernel: Any, call: LoweredCall, tensors: dict[str, NDArray], target: Target
) -> None:
    rng = np.random.default_rng(0)
    layer, rule = call.layer, call.choice.rule
    args = [physical(t, tensors[t.name], rng) for t in layer.inputs]
    args += rule.constants(layer, target, call.choice.params)
    results = [tvm.runtime.tensor(physical(t, None, rng)) for _, t in layer.outputs]
    kernel(*map(tvm.runtime.tensor, args), *results)
    for (_, tensor), result in zip(layer.outputs, results, strict=True):
        expected, found = tensors[tensor.name], result.numpy()
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(logical(tensor, found).reshape(expected.shape), expected)
        assert (_halo(tensor, found) == tensor.fill).all()


def physical(tensor: Tensor, values: NDArray | None, rng: np.random.Generator) -> NDArray:
    """A tensor as it lies in memory, noise in padded channels; noise alone without `values`."""
    shape, dtype = tensor.physical_shape, np.dtype(tensor.dtype)
    if dtype.kind == "f":
        out = rng.normal(size=shape).astype(dtype)
    else:
        out = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    if values is None:
        return out
    if tensor.layout.kind == "NCHW":
        return values.reshape(shape).astype(dtype)
    top, left, _, _ = tensor.layout.halo
    n, c, h, w = tensor.shape
    out[:, :top], out[:, top + h :], out[:, :, :left], out[:, :, left + w :] = (tensor.fill,) * 4
    out[:, top : top + h, left : left + w, :c] = values.reshape(n, c, h, w).transpose(0, 2, 3, 1)
    return out


def logical(tensor: Tensor, values: NDArray) -> NDArray:
    """The logical [N, C, H, W] tensor in an array that lies in memory as `tensor` says."""
    n, c, h, w = tensor.shape
    if tensor.layout.kind == "NCHW":
        return values.reshape(n, c, h, w)
    top, left, _, _ = tensor.layout.halo
    return values[:, top : top + h, left : left + w, :c].transpose(0, 3, 1, 2)


def _halo(tensor: Tensor, values: NDArray) -> NDArray:
    """All elements of a tensor's halo."""
    top, left, _, _ = tensor.layout.halo
    _, _, h, w = tensor.shape
    outside = np.ones(values.shape, bool)
    if tensor.layout.kind == "NCHW":
        return values[~outside]
    outside[:, top : top + h, left : left + w] = False
    return values[outside]


@dataclass
class Built:
    """A compiled network: what it was lowered to, and its executable."""

    lowered: Lowered
    executable: Any
    arena: int

    def run(self, x: NDArray, function: str = "main") -> NDArray:
        """Result of a function of the library for one input."""
        vm = relax.VirtualMachine(self.executable, tvm.cpu())
        return vm[function](tvm.runtime.tensor(x)).numpy()


def build(mod: tvm.IRModule, target: Target | None = None) -> Built:
    """Compile a whole integer-stage module, as a library holds it."""
    target = target or host()
    require_host(target)
    lowered = lower(mod, target)
    planned, arena = to_vm(lowered.mod, target)
    empty = tvm.transform.Sequential([])
    return Built(lowered, relax.build(planned, target=target, relax_pipeline=empty), arena)


def check_network(mod: tvm.IRModule, *inputs: NDArray) -> Built:
    """Compile a whole network and require the reference executor's result, bit for bit."""
    built, reference = build(mod), ReferenceExecutor(mod)
    for x in inputs:
        expected, found = reference.run(x), built.run(x)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    return built


def call_of(lowered: Lowered, kind: str) -> LoweredCall:
    """The one call whose anchor is of that kind."""
    (call,) = [c for c in lowered.calls if c.layer.kind == kind]
    return call


def kernel_asm(lowered: Lowered, call: LoweredCall, target: Target) -> str:
    """Assembly of one kernel of a lowered module, cross-compiled where need be."""
    func = lowered.mod[call.kernel].with_attr("global_symbol", call.kernel)
    compiled = tvm.compile(tvm.IRModule({call.kernel: func}), target=target)
    return str(compiled.mod.inspect_source("asm"))
