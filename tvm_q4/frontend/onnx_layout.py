"""What is read off the graph before the walk: an input of [N, H, W, C], and the Clips of QCDQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from numpy.typing import NDArray

from tvm_q4.frontend.onnx_structure import OnnxGraph, result_of

_ELEMENTWISE = ("QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Clip")
_TO_NCHW = [0, 3, 1, 2]


def channels_last_transposes(graph: OnnxGraph) -> set[str]:
    """Results of the transposes to [N, C, H, W] through which alone the input is read.

    Between the input and them stand at most element-wise operators with one scale for all
    elements, so that transposing the input instead changes no value. Empty where the model takes
    [N, C, H, W], or does anything else with [N, H, W, C].
    """
    found: set[str] = set()
    waiting = [graph.input.name]
    while waiting:
        name = waiting.pop()
        if name in graph.outputs:
            return set()
        for node in graph.readers.get(name, []):
            if node.op_type == "Transpose" and _perm(node) == _TO_NCHW:
                found.add(result_of(node))
            elif node.op_type in _ELEMENTWISE and node.input[0] == name and _is_scalar(graph, node):
                waiting.append(result_of(node))
            else:
                return set()
    return found


def _perm(node: onnx.NodeProto) -> list[int]:
    return [i for a in node.attribute if a.name == "perm" for i in a.ints]


def _is_scalar(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    """Whether all further inputs of a node are constants of one element."""
    others = [graph.constants.get(i) for i in node.input[1:] if i]
    return all(t is not None and all(d == 1 for d in t.dims) for t in others)


def clip_bounds(
    graph: OnnxGraph, quantized: str, array: Callable[[str], NDArray[Any]]
) -> tuple[int, int] | None:
    """Bounds of the Clip that alone reads a QuantizeLinear's result, which are its real range."""
    maker, clip = graph.makers[quantized], graph.only_reader(quantized)
    if maker.op_type != "QuantizeLinear" or clip is None or clip.op_type != "Clip":
        return None
    names = [*clip.input[1:], "", ""][:2]
    if clip.input[0] != quantized or any(n and n not in graph.constants for n in names):
        return None
    bounds = [array(n) if n else None for n in names]
    if any(b is not None and (b.size != 1 or b.dtype.kind not in "iu") for b in bounds):
        return None
    low, high = (None if b is None else int(b.item()) for b in bounds)
    return (-(2**31) if low is None else low, 2**31 - 1 if high is None else high)
