"""The table of converters, and the node that a converter is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tvm_q4 import ops
from tvm_q4._compat import GenericConst
from tvm_q4.errors import UnsupportedError
from tvm_q4.frontend.common.values import ImporterFace, Value

MICROSOFT = "com.microsoft"
QONNX = ("qonnx.custom_op.general", "onnx.brevitas")
_LIMIT = 2**31


@dataclass(frozen=True)
class NodeView:
    """A node with resolved inputs and attributes.

    Attributes
    ----------
    op : str
        Operator, with its domain where that is not ONNX's own.
    inputs : list of Value or None
        None where an optional input is left out.
    attrs : dict
        Attributes as Python values, defaults of ONNX's schemas filled in.
    opset : int
        Version of the operator set of the node's domain.
    label : str
        Unique name of the result.
    where : str
        Node and operator, for messages.
    tensor_role : str or None
        ``<layer>.weight`` or ``<layer>.bias`` where the node only prepares a layer's parameter.
    clip : tuple of int or None
        Bounds of the Clip on integers that alone reads the result (QCDQ).
    """

    op: str
    inputs: list[Value | None]
    attrs: dict[str, Any]
    opset: int
    label: str
    where: str
    tensor_role: str | None
    clip: tuple[int, int] | None = None

    def unsupported(self, why: str) -> UnsupportedError:
        """Error to raise: the operator is known, this use of it is not."""
        return UnsupportedError(f"{self.where}: {why}")

    def role(self, role: str | None) -> NodeView:
        """The same node in the part of what prepares a layer's parameter."""
        return replace(self, tensor_role=role)

    def optional(self, index: int) -> Value | None:
        """Input `index`, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def tensor(self, index: int) -> Value:
        """Input `index`, which must be there."""
        value = self.optional(index)
        if value is None:
            raise self.unsupported(f"input {index} is missing")
        return value

    def array(self, index: int) -> NDArray[Any] | None:
        """Value of the constant input `index`, None where it is left out."""
        value = self.optional(index)
        if value is None:
            return None
        if not isinstance(value.expr, GenericConst):
            raise self.unsupported(
                f"input {index} ('{value.base}') is computed at run time; only constants are "
                "supported there (static quantization, static shapes)"
            )
        return ops.const_array(value.expr)

    def integers_of(self, index: int) -> list[int] | None:
        """The constant input `index` as a list of int, None where it is left out."""
        array = self.array(index)
        if array is None:
            return None
        if array.dtype.kind not in "iu" or array.ndim > 1:
            found = f"{array.dtype} {list(array.shape)}"
            raise self.unsupported(f"input {index} is {found}, expected a list of integers")
        return self._bounded(f"input {index}", [int(v) for v in array.ravel()])

    def integer(self, name: str, default: int | None = None) -> int:
        """Integer attribute."""
        return self._bounded(name, [self._attr(name, int, default)])[0]

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Attribute that is a list of integers."""
        values = self._attr(name, list, None if default is None else list(default))
        if any(not isinstance(v, int) for v in values):
            raise self.unsupported(f"attribute '{name}' is {values}, expected integers")
        return self._bounded(name, values)

    def optional_integers(self, name: str) -> list[int] | None:
        """As `integers`, None where the attribute is left out."""
        return self.integers(name) if name in self.attrs else None

    def number(self, name: str, default: float | None = None) -> float:
        """Attribute that is a number."""
        return float(self._attr(name, (float, int), default))

    def text(self, name: str, default: str | None = None) -> str:
        """Attribute that is text."""
        value = self._attr(name, (bytes, str), default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def _attr(self, name: str, kind: Any, default: Any) -> Any:
        value = self.attrs.get(name, default)
        if value is None:
            raise self.unsupported(f"attribute '{name}' is missing")
        if not isinstance(value, kind):
            raise self.unsupported(f"attribute '{name}' is {value!r:.60}, of another type")
        return value

    def _bounded(self, name: str, values: list[int]) -> list[int]:
        worst = max(values, key=abs, default=0)
        # ONNX writes an open end of a slice as the largest int64.
        if abs(worst) >= _LIMIT and not self.op.endswith("Slice"):
            raise self.unsupported(f"'{name}' holds {worst}, which no tensor here can have")
        return values


Converter = Callable[[ImporterFace, NodeView], Value]
ConverterT = TypeVar("ConverterT", bound=Converter)
CONVERTERS: dict[tuple[str, str], Converter] = {}


def converts(*names: str, domain: str | Sequence[str] = "") -> Callable[[ConverterT], ConverterT]:
    """Register a converter for operators of a domain (ONNX's own is the empty one)."""

    def register(function: ConverterT) -> ConverterT:
        for one in [domain] if isinstance(domain, str) else domain:
            for name in names:
                assert (one, name) not in CONVERTERS, f"{one} {name} has two converters"
                CONVERTERS[one, name] = function
        return function

    return register


def limits(value: Value) -> tuple[int, int]:
    """Range of an integer tensor: its own where it is known to be narrow, else its type's."""
    if value.range is not None:
        return value.range.lo, value.range.hi
    info = np.iinfo(value.dtype)
    return int(info.min), int(info.max)


def axis_of(node: NodeView, axis: int, rank: int) -> int:
    """`axis` counted from the front, checked."""
    if not -rank <= axis < rank:
        raise node.unsupported(f"axis {axis} is outside a tensor of {rank} dimensions")
    return axis % rank
