"""Converters of ONNX operators to Relax, one operator family a file.

A converter takes the importer and a `NodeView` (a node with resolved inputs and attributes) and
returns the `Value` that stands for the node's result. `CONVERTERS` maps (domain, operator) to them.
"""

from __future__ import annotations

from tvm_q4.frontend.onnx_ops import (  # noqa: F401  (importing a family registers its converters)
    elementwise,
    layers,
    operator_oriented,
    pooling,
    qonnx,
    quantization,
    refused,
    shape,
)
from tvm_q4.frontend.onnx_ops.folding import fold
from tvm_q4.frontend.onnx_ops.registry import CONVERTERS

__all__ = ["CONVERTERS", "fold"]
