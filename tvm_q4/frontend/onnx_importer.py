"""The walk over one ONNX graph: tensors, attributes, shapes and the Relax function it builds."""

from __future__ import annotations

from typing import Any

import onnx
from tvm import relax

from tvm_q4._compat import TensorType
from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.common.values import Value
from tvm_q4.frontend.common.writer import FunctionWriter
from tvm_q4.frontend.onnx_file import tensor_array, type_name
from tvm_q4.frontend.onnx_layout import channels_last_transposes, clip_bounds
from tvm_q4.frontend.onnx_names import OnnxNames
from tvm_q4.frontend.onnx_ops import CONVERTERS, fold
from tvm_q4.frontend.onnx_ops.registry import NodeView
from tvm_q4.frontend.onnx_sources import onnx_tensors
from tvm_q4.frontend.onnx_structure import OnnxGraph, describe, result_of

_MOST_ELEMENTS = 2**31
_TVM_ERRORS = (ValueError, RuntimeError, TypeError, IndexError, OverflowError)
"""How TVM and NumPy refuse shapes and attributes that make no sense."""


class OnnxImporter(FunctionWriter):
    """Walks one graph and builds one Relax function."""

    def __init__(
        self,
        graph: OnnxGraph,
        opsets: dict[str, int],
        folder: Any,
        batch: int | None,
        image_size: tuple[int, int] | None,
    ) -> None:
        scope = OnnxNames(graph)
        super().__init__(scope)
        self._scope, self._graph, self._opsets, self._folder = scope, graph, opsets, folder
        self._to_nchw = channels_last_transposes(graph)
        shape, self.recorded_batch = _input_shape(
            graph.input, bool(self._to_nchw), batch, image_size
        )
        self.batch = shape[0]
        self._parameter = relax.Var("x", TensorType(shape, "float32"))
        self._env = {graph.input.name: Value(self._parameter, "input")}

    @property
    def channels_last(self) -> bool:
        """Whether the model takes [N, H, W, C]; the module takes [N, C, H, W] all the same."""
        return bool(self._to_nchw)

    @property
    def tensors(self) -> dict[str, str]:
        """The ONNX tensor of each quantized activation, by its name in the module."""
        return onnx_tensors(self._graph, self._env, self._bindings)

    def run(self) -> Any:
        """Build the module."""
        for node in self._graph.nodes:
            self._env[result_of(node)] = self._visit(node)
        result = self._value(self._graph.outputs[0], "the model's output")
        if result.constant:
            raise UnsupportedError("the model's output does not depend on its input")
        if result.dtype != "float32":
            raise UnsupportedError(
                f"the model returns {result.dtype} '{self._graph.outputs[0]}'; end it with a "
                "DequantizeLinear"
            )
        return self.module(self._parameter, result.expr)

    def emit(self, expr: relax.Expr, label: str) -> relax.Var:
        """As `FunctionWriter.emit`, for tensors of a size that can exist."""
        var = super().emit(expr, label)
        shape = [int(d) for d in getattr(var.ty, "shape", None) or []]
        elements = 1
        for size in shape:
            elements *= size
        if elements >= _MOST_ELEMENTS or min(shape, default=1) < 1:
            raise UnsupportedError(
                f"tensor '{label}' would have shape {shape}; check the image size and the batch"
            )
        return var

    def _visit(self, node: onnx.NodeProto) -> Value:
        if result_of(node) in self._to_nchw:
            return self._value(node.input[0], describe(node))
        converter = CONVERTERS.get((_domain(node.domain), node.op_type))
        view = self._view(node)
        try:
            folded = fold(node, view)
            if folded is not None:
                return folded
            if converter is None:
                raise view.unsupported("this operator is not supported")
            return converter(self, view)
        except _TVM_ERRORS as error:
            reason = " ".join(str(error).split())
            raise UnsupportedError(f"{view.where}: cannot be imported: {reason:.300}") from error

    def _view(self, node: onnx.NodeProto) -> NodeView:
        where, name = describe(node), result_of(node)
        inputs = [self._value(i, where) if i else None for i in node.input]
        domain = _domain(node.domain)
        return NodeView(
            op=f"{domain}.{node.op_type}" if domain else node.op_type,
            inputs=inputs,
            attrs=_attributes(node, where, domain, self._opsets),
            opset=self._opsets.get(domain, 1),
            label=self._scope.label(node),
            where=where,
            tensor_role=self._scope.roles.get(name),
            clip=clip_bounds(self._graph, name, self._array),
        )

    def _array(self, name: str) -> Any:
        """Value of a constant by its name."""
        return tensor_array(self._graph.constants[name], self._folder)[0]

    def _value(self, name: str, reader: str) -> Value:
        if name not in self._env:
            if name not in self._graph.constants:
                maker = self._graph.makers.get(name)
                if maker is None:
                    raise InputError(f"{reader} reads tensor '{name}', which nothing makes")
                at = list(maker.output).index(name)
                raise UnsupportedError(
                    f"{reader} reads result {at} of {describe(maker)}, which is not available"
                )
            array, bounds = tensor_array(self._graph.constants[name], self._folder)
            self._env[name] = Value(relax.const(array, str(array.dtype)), name, True, bounds)
        return self._env[name]


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _attributes(
    node: onnx.NodeProto, where: str, domain: str, opsets: dict[str, int]
) -> dict[str, Any]:
    """Attributes of a node, checked against ONNX's schema, whose defaults are filled in."""
    found = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise UnsupportedError(f"{where}: attribute '{attribute.name}' refers to a function's")
        found[attribute.name] = onnx.helper.get_attribute_value(attribute)
    if domain:
        return found
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets[""], "")
    except onnx.defs.SchemaError as error:
        msg = f"{where}: ONNX has no such operator in opset {opsets['']}"
        raise UnsupportedError(msg) from error
    unknown = sorted(set(found) - set(schema.attributes))
    if unknown:
        # ONNX Runtime's quantizer writes axis, new in opset 13, into models of opset 11 too, and
        # refuses to load them as well.
        msg = f"{where}: opset {opsets['']} knows no attribute '{unknown[0]}' of this operator"
        raise UnsupportedError(f"{msg}; convert the float model to opset 13 or later first")
    given = sum(bool(i) for i in node.input)
    if not schema.min_input <= len(node.input) <= schema.max_input or given < schema.min_input:
        raise InputError(
            f"{where}: {given} inputs are given, expected {schema.min_input} to {schema.max_input}"
        )
    defaults = {
        k: onnx.helper.get_attribute_value(a.default_value)
        for k, a in schema.attributes.items()
        if a.default_value.type
    }
    return defaults | found


def _input_shape(
    info: onnx.ValueInfoProto,
    channels_last: bool,
    batch: int | None,
    image_size: tuple[int, int] | None,
) -> tuple[list[int], int | None]:
    """Shape [N, C, H, W] as asked for, and the recorded batch where that is a number."""
    tensor = info.type.tensor_type
    dims = [d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in tensor.shape.dim]
    kind = type_name(tensor.elem_type)
    if len(dims) != 4 or kind != "FLOAT":
        found = f"{kind} {['?' if d is None else d for d in dims]}"
        raise UnsupportedError(
            f"the model's input '{info.name}' is {found}; expected FLOAT [N, C, H, W]"
        )
    if channels_last:
        dims = [dims[0], dims[3], dims[1], dims[2]]
    recorded = dims[0] or None  # some exporters write 0 or -1 for a dynamic batch
    recorded = None if recorded is None or recorded < 0 else recorded
    shape = [batch or recorded or 1, dims[1], *(image_size or dims[2:])]
    if any(d is None or d < 1 for d in shape[2:]):
        raise InputError(
            f"the model's input '{info.name}' has a dynamic image size; give --image-size HxW"
        )
    elements = 1
    for d in shape:
        elements *= d or 0
    if shape[1] is None or min(d or 0 for d in shape) < 1 or elements >= _MOST_ELEMENTS:
        raise InputError(
            f"the input '{info.name}' cannot have shape {shape}; check --batch and --image-size"
        )
    return [int(d or 0) for d in shape], recorded
