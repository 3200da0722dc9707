"""The walk over one exported graph: environment, names, shapes and the Relax function it builds."""

from __future__ import annotations

from typing import Any

import torch
import tvm
from tvm import relax

from tvm_q4._compat import TensorType
from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.common.values import Value
from tvm_q4.frontend.common.writer import FunctionWriter
from tvm_q4.frontend.torch_names import NameScope, describe, op_name
from tvm_q4.frontend.torch_ops import CONVERTERS, NO_OPERATION
from tvm_q4.frontend.torch_ops.registry import NodeView

SYMBOLIC = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
}
"""Operators on symbolic sizes, which are plain numbers here."""


def _tensors(program: torch.export.ExportedProgram) -> dict[str, tuple[str, torch.Tensor]]:
    """Qualified name and value of the parameter, buffer or constant behind each placeholder."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    stored = {**program.constants, **program.state_dict}
    return {holder: (fqn, stored[fqn]) for holder, fqn in names.items()}


def _input_shape(
    node: Any, batch: int | None, image_size: tuple[int, int] | None
) -> tuple[list[int], int | None]:
    """Shape of the model's input as asked for, and the recorded batch where that is a number."""
    recorded = node.meta["val"]
    if recorded.dim() != 4 or recorded.dtype != torch.float32:
        found = f"{str(recorded.dtype).removeprefix('torch.')} {list(recorded.shape)}"
        raise UnsupportedError(
            f"the model's input '{node.name}' is {found}; expected float32 [N, C, H, W]"
        )
    static = [d if isinstance(d, int) else None for d in recorded.shape]
    shape = [batch or static[0] or 1, static[1], *(image_size or static[2:])]
    if None in shape[2:]:
        raise InputError(
            f"the model's input '{node.name}' has a dynamic image size; give --image-size HxW"
        )
    if shape[1] is None or any(d is not None and d < 1 for d in shape):
        raise InputError(
            f"the input '{node.name}' cannot have shape {shape}; check --batch and --image-size"
        )
    return [int(d) for d in shape if d is not None], static[0]


class GraphImporter(FunctionWriter):
    """Walks one graph and builds one Relax function."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        batch: int | None,
        image_size: tuple[int, int] | None,
    ) -> None:
        self._graph = program.graph
        self._tensors = _tensors(program)
        scope = NameScope(program.graph, {h: fqn for h, (fqn, _) in self._tensors.items()})
        super().__init__(scope)
        self._scope = scope
        self._env: dict[Any, Any] = {}
        self._input = self._only_input(program)
        shape, self.recorded_batch = _input_shape(self._input, batch, image_size)
        self.batch = shape[0]
        self._parameter = relax.Var("x", TensorType(shape, "float32"))
        self._env[self._input] = Value(self._parameter, "input")

    def _only_input(self, program: torch.export.ExportedProgram) -> Any:
        users = set(program.graph_signature.user_inputs)
        nodes = [n for n in self._graph.nodes if n.op == "placeholder" and n.name in users]
        if len(nodes) != 1:
            raise UnsupportedError(
                f"the model takes {len(nodes)} tensors; only models of one image are supported"
            )
        return nodes[0]

    def run(self) -> tvm.IRModule:
        """Build the module."""
        for node in self._graph.nodes:
            self._visit(node)
        return self.module(self._parameter, self._result())

    def _result(self) -> relax.Expr:
        (outputs,) = next(n for n in self._graph.nodes if n.op == "output").args
        if len(outputs) != 1:
            raise UnsupportedError(
                f"the model returns {len(outputs)} values; only models of one output are supported"
            )
        value = self._env[outputs[0]]
        if not isinstance(value, Value) or value.constant:
            raise UnsupportedError("the model's output does not depend on its input")
        return value.expr

    def _visit(self, node: Any) -> None:
        op = op_name(node)
        if node.op == "output" or node is self._input or op in NO_OPERATION:
            return
        if node.op == "placeholder":
            self._env[node] = self._constant(node)
        elif op == "getitem":
            self._env[node] = self._item(node)
        elif op in SYMBOLIC:
            self._env[node] = SYMBOLIC[op](*(self._resolve(a) for a in node.args))
        else:
            self._env[node] = self._convert(node, op)

    def _constant(self, node: Any) -> Value:
        fqn, tensor = self._tensors[node.name]
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise UnsupportedError(
                f"parameter '{fqn}' is {tensor.dtype}; export the model in float32"
            )
        array = tensor.detach().cpu().contiguous().numpy()
        return Value(relax.const(array, str(array.dtype)), fqn, constant=True)

    def _item(self, node: Any) -> Any:
        items, index = self._resolve(node.args[0]), node.args[1]
        if index >= len(items):
            raise UnsupportedError(
                f"{describe(node)}: result {index} of {describe(node.args[0])} is not available"
            )
        return items[index]

    def _resolve(self, arg: Any) -> Any:
        """Argument with nodes replaced by their values, in lists too."""
        if isinstance(arg, (list, tuple)):
            return [self._resolve(a) for a in arg]
        return self._env[arg] if isinstance(arg, torch.fx.Node) else arg

    def _convert(self, node: Any, op: str) -> Any:
        view = NodeView(
            op,
            self._bind(node),
            self._scope.label(node),
            describe(node),
            self._scope.roles.get(node),
        )
        try:
            return CONVERTERS[op](self, view)
        except (ValueError, RuntimeError) as error:  # how TVM's type inference refuses shapes
            reason = " ".join(str(error).split())
            raise UnsupportedError(f"{view.where}: TVM refuses this operator: {reason}") from error

    def _bind(self, node: Any) -> dict[str, Any]:
        """Arguments by the names of the operator's schema, defaults filled in."""
        bound = {}
        for i, argument in enumerate(node.target._schema.arguments):
            if i < len(node.args):
                value = node.args[i]
            elif argument.name in node.kwargs:
                value = node.kwargs[argument.name]
            else:
                value = argument.default_value if argument.has_default_value() else None
            bound[argument.name] = self._resolve(value)
        return bound
