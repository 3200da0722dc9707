"""A whole network in the emulator: every kernel of a compiled function, in its order.

A kernel reads what those before it wrote, as it lies in memory: halos, padded channels and all.
Memory holds noise before a kernel writes it, because the tensors of a library share memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tests.cuda_emulator import Uninitialized
from tests.cuda_emulator.prim_func import run_prim_func
from tests.schedules.cuda.builders import cuda, fill_words, layout_json, outside
from tvm_q4._compat import GenericConst
from tvm_q4.layouts import to_logical
from tvm_q4.ops import const_array
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes._rewrite import dataflow_bindings, op_name
from tvm_q4.relay_passes.lower_to_tir import Lowered
from tvm_q4.relay_passes.pipeline import to_fused, to_integer, to_kernels
from tvm_q4.schedules.cuda.pipeline import tir_pipeline
from tvm_q4.schedules.cuda.rules import RULES
from tvm_q4.schedules.layer import Tensor

Value = Any  # an array, or a tuple of arrays


class EmulatedNetwork:
    """A network that is compiled for one arch and run without a GPU.

    Parameters
    ----------
    mod : tvm.IRModule
        Module of the QDQ or integer stage, without float operators between integer ones.
    arch : int
        Such as 75.
    """

    def __init__(self, mod: tvm.IRModule, arch: int) -> None:
        self.arch = arch
        integer = to_integer(mod)
        self.reference = ReferenceExecutor(integer)
        self.lowered: Lowered = to_kernels(to_fused(integer), cuda(arch), RULES, lambda _: None)

    def check(self, x: NDArray) -> NDArray:
        """Run ``main`` and require the reference's value of every tensor that it stores."""
        expected, tensors = self.reference.run_and_trace(x)
        result, made = self._run("main", x)
        for call, outputs in zip(self.lowered.calls, made, strict=True):
            own = call.layer.outputs  # the last ones; scratch memory comes before
            for (_, tensor), found in zip(own, outputs[-len(own) :], strict=True):
                # What only moves data has no name in the trace; its readers show it.
                values = None if call.layer.kind == "gather" else tensors[tensor.name]
                _check_tensor(tensor, found, values)
        np.testing.assert_array_equal(result, expected)
        return result

    def run_quantized(self, x: NDArray) -> NDArray:
        """Result of ``main_quantized``."""
        return self._run("main_quantized", x)[0]

    def _run(self, function: str, x: NDArray) -> tuple[NDArray, list[list[NDArray]]]:
        """Result of a function, and what each of its kernels wrote, in order."""
        main, rng = self.lowered.mod[function], np.random.default_rng(0)
        env: dict[relax.Var, Value] = {main.params[0]: x}
        made = []
        for binding in dataflow_bindings(main):
            value = binding.value
            if op_name(value) != "relax.call_tir":
                env[binding.var] = _value(value, env)
                continue
            inputs = [_value(a, env) for a in value.args[1].fields]
            outputs = [_noise(t, rng) for t in _types(binding.var)]
            self._launch(self.lowered.mod[value.args[0]], inputs, outputs)
            env[binding.var] = tuple(outputs) if len(outputs) > 1 else outputs[0]
            made.append(outputs)
        return _value(main.body.body, env), made

    def _launch(self, func: Any, inputs: list[NDArray], outputs: list[NDArray]) -> None:
        arguments = [*inputs, *(Uninitialized(out) for out in outputs)]
        run_prim_func(func, arguments, f"sm_{self.arch}", pipeline=tir_pipeline())


def _value(expr: relax.Expr, env: dict[relax.Var, Value]) -> Value:
    if isinstance(expr, relax.Var):
        return env[expr]
    if isinstance(expr, GenericConst):
        return const_array(expr)
    if isinstance(expr, relax.TupleGetItem):
        return env[expr.tuple_value][expr.index]
    raise AssertionError(f"{op_name(expr) or type(expr).__name__} is no kernel of ours")


def _types(var: relax.Var) -> list[Any]:
    return list(var.ty.fields) if isinstance(var.ty, relax.TupleType) else [var.ty]


def _noise(ty: Any, rng: np.random.Generator) -> NDArray:
    """A tensor of random bytes."""
    shape, dtype = [int(d) for d in ty.shape], np.dtype(str(ty.dtype))
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(rng.bytes(size), dtype).reshape(shape).copy()


def _check_tensor(tensor: Tensor, found: NDArray, expected: NDArray | None) -> None:
    """Require the expected values, where they are known, and the halo's."""
    if expected is not None:
        values = to_logical(found, tensor.shape[: tensor.rank], layout_json(tensor))
        np.testing.assert_array_equal(values.reshape(expected.shape), expected, tensor.name)
    if tensor.layout.bits:
        halo = found[outside(tensor)]
        np.testing.assert_array_equal(halo, np.broadcast_to(fill_words(tensor), halo.shape))
