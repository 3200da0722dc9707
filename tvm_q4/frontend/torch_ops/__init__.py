"""Converters of ATen operators to Relax, one operator family a file.

A converter takes the `Importer` and a `NodeView` (the node with its arguments bound to the names
of the operator's schema) and returns the `Value` that stands for the node's result. `CONVERTERS`
maps overload names such as ``aten.conv2d.default`` to them.
"""

from __future__ import annotations

from tvm_q4.frontend.torch_ops import (  # noqa: F401  (importing a family registers its converters)
    convolution,
    elementwise,
    norm,
    pooling,
    quantization,
    shape,
)
from tvm_q4.frontend.torch_ops.registry import CONVERTERS, NO_OPERATION

__all__ = ["CONVERTERS", "NO_OPERATION"]
