"""Helpers of the frontend tests: small programs, and both sides' tensors by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
import tvm
from torch import Tensor, nn
from torch.export import ExportedProgram

from tvm_q4 import ops

Q = torch.ops.quantized_decomposed


class Lambda(nn.Module):
    """A module of one function, and of submodules that the function gets."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Call the function with this module and x."""
        return self.function(self, x)


def export(module: nn.Module, *shape: int, dynamic: bool = False) -> ExportedProgram:
    """Exported program of `module` in evaluation mode for a random float32 input of `shape`."""
    dims = ({0: torch.export.Dim.AUTO},) if dynamic else None
    return torch.export.export(module.eval(), (torch.randn(*shape),), dynamic_shapes=dims)


def fake_quantized(x: Tensor, scale: float, lo: int, hi: int, zero_point: int = 0) -> Tensor:
    """Quantize and dequantize nodes around nothing."""
    dtype = torch.int8 if lo < 0 else torch.uint8
    q = Q.quantize_per_tensor(x, scale, zero_point, lo, hi, dtype)
    return Q.dequantize_per_tensor(q, scale, zero_point, lo, hi, dtype)


def bindings(mod: tvm.IRModule) -> list[Any]:
    """Bindings of main, in order."""
    (block,) = mod["main"].body.blocks
    return list(block.bindings)


def op_counts(mod: tvm.IRModule) -> Counter[str]:
    """How often each operator is called in main."""
    return Counter(b.value.op.name for b in bindings(mod) if hasattr(b.value, "op"))


def q4_calls(mod: tvm.IRModule, op: str | None = None) -> dict[str, dict[str, Any]]:
    """Attributes of the q4 calls of main (of one operator), by name."""
    calls = [b.value for b in bindings(mod) if ops.is_q4(b.value, op)]
    return {ops.attrs_of(c)["name"]: ops.attrs_of(c) for c in calls}


def constant_of(mod: tvm.IRModule, name: str, index: int) -> np.ndarray:
    """Constant argument `index` of the q4 call `name`."""
    (call,) = (
        b.value
        for b in bindings(mod)
        if ops.is_q4(b.value) and ops.attrs_of(b.value)["name"] == name
    )
    return ops.const_array(call.args[index])


class _Recorder(torch.fx.Interpreter):
    """Runs an exported graph and keeps what its quantize nodes make."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.quantized: list[np.ndarray] = []

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if "quantized_decomposed.quantize_per_tensor" in str(n.target):
            self.quantized.append(result.numpy())
        return result


@torch.no_grad()
def torch_tensors(program: ExportedProgram, x: Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
    """Output of the program in torch, and its quantized activations in graph order."""
    recorder = _Recorder(program.module(check_guards=False))
    return recorder.run(x).numpy(), recorder.quantized
