"""The table of converters, and what converters are given: values, nodes, the importer's face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tvm_q4.errors import UnsupportedError
from tvm_q4.frontend.common.values import ImporterFace, Value


@dataclass(frozen=True)
class NodeView:
    """A node of the exported graph with resolved arguments.

    Attributes
    ----------
    op : str
        Overload name, ``aten.conv2d.default``.
    args : dict
        Arguments by schema name, defaults filled in; tensors are `Value`, symbolic sizes are int.
    label : str
        Unique name of the result: the module's path where one module call makes it.
    where : str
        Node, operator and source line, for messages.
    tensor_role : str or None
        ``<layer>.weight`` or ``<layer>.bias`` where the node only prepares a layer's parameter.
    """

    op: str
    args: dict[str, Any]
    label: str
    where: str
    tensor_role: str | None

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def tensor(self, name: str) -> Value:
        """Argument `name`, which must be a tensor."""
        value = self.args[name]
        if not isinstance(value, Value):
            raise self.unsupported(f"{name} is {value!r}, expected a tensor")
        return value

    def unsupported(self, why: str) -> UnsupportedError:
        """Error to raise: the operator is known, this use of it is not."""
        return UnsupportedError(f"{self.where}: {why}")


Converter = Callable[[ImporterFace, NodeView], Any]
ConverterT = TypeVar("ConverterT", bound=Converter)
CONVERTERS: dict[str, Converter] = {}
NO_OPERATION = {
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
}


def converts(*ops: str) -> Callable[[ConverterT], ConverterT]:
    """Register a converter for the overloads `ops`."""

    def register(function: ConverterT) -> ConverterT:
        for op in ops:
            assert op not in CONVERTERS, f"{op} has two converters"
            CONVERTERS[op] = function
        return function

    return register


def pair(values: Any) -> list[int]:
    """Two ints of a list argument that may have been recorded with one."""
    out = [int(v) for v in (values if isinstance(values, (list, tuple)) else [values])]
    return out * 2 if len(out) == 1 else out
