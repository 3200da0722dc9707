"""What converters are given and return: tensors, and the faces of nodes and importers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import relax

from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import IntRange


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the imported graph in Relax.

    Attributes
    ----------
    expr : relax.Expr
        Variable or constant with a static shape.
    base : str
        Name that a quantization of this tensor takes (``layer1.0.conv1.out``).
    constant : bool
        Whether it derives from parameters alone.
    range : IntRange or None
        Range of the integers where it is narrower than the type's.
    """

    expr: relax.Expr
    base: str
    constant: bool = False
    range: IntRange | None = None

    @property
    def shape(self) -> list[int]:
        """Static shape."""
        return [int(d) for d in self.expr.ty.shape]

    @property
    def dtype(self) -> str:
        """Element type, as NumPy names it."""
        return str(self.expr.ty.dtype)


class NodeFace(Protocol):
    """What the builders of `tvm_q4.frontend.common` need of a node."""

    @property
    def label(self) -> str:
        """Unique name of the result."""

    @property
    def tensor_role(self) -> str | None:
        """``<layer>.weight`` or ``<layer>.bias`` of a node that only prepares a parameter."""

    def unsupported(self, why: str) -> UnsupportedError:
        """Error to raise: the operator is known, this use of it is not."""


class ImporterFace(Protocol):
    """What a converter may ask of the importer."""

    batch: int
    recorded_batch: int | None

    def emit(self, expr: relax.Expr, label: str) -> relax.Var:
        """Bind `expr` in the main function under the tensor name `label`."""

    def quantized_name(self, base: str) -> str:
        """Unique name of a quantization of the tensor `base`: itself, then ``.q2``, ``.q3``."""

    def unique(self, stem: str, suffix: str = "") -> str:
        """``stem + suffix``, with a counter after the stem where it is taken."""

    def shared(self, key: tuple[Any, ...], make: Callable[[], Value]) -> Value:
        """Value made before under `key`, else the one that `make` makes now."""


def positive(shape: list[int], node: NodeFace) -> list[int]:
    """`shape`, checked to have at least one element along each axis."""
    if any(d < 1 for d in shape):
        msg = f"the result would have shape {shape}; the image is too small for this model"
        raise node.unsupported(f"{msg}, give a larger --image-size")
    return shape
