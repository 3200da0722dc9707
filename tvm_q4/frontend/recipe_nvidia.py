"""NVIDIA's form of an integer recipe (MLPerf Inference v0.5, INT4 ResNet-50) in terms of ours.

Every tensor keeps its name, except that a convolution's or linear layer's accumulator is named
after its layer (``layer1.0.conv3.acc`` is ``layer1.0.conv3``); the module's fact
``tensor_aliases`` holds those pairs. A ReLU is the lower clamp bound of the requantization that
reads it: multipliers are not negative, so rounding is monotonic and keeps 0.
"""

from __future__ import annotations

from typing import Any

from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.recipe_nvidia_ops import HANDLERS
from tvm_q4.frontend.recipe_nvidia_state import Arrays, Translation
from tvm_q4.frontend.recipe_schema import check_keys

_COMMON = {"op", "input", "output", "in_type", "out_type"}
_NOTES = {"source", "source_mode", "layout", "rounding"}
_LINEAR = {"weight", "bias", "weight_type", "bias_type"}
_KEYS: dict[str, set[str]] = {
    "input_quant": {"op", "input", "output", "out_type", "formula", "mean", "std", "real_step"},
    "conv2d": _COMMON | _LINEAR
    | {"in_channels", "out_channels", "kernel", "stride", "padding", "pad_value", "dilation"}
    | {"groups"},
    "linear": _COMMON | _LINEAR | {"in_features", "out_features"},
    "relu": _COMMON,
    "requant": _COMMON | {"mul", "shift", "axis", "clamp"},
    "maxpool2d": _COMMON | {"kernel", "stride", "padding", "pad_value"},
    "global_avgpool": _COMMON | {"kernel", "formula"},
    "add": _COMMON,
    "divide": _COMMON | {"divisor", "axis"},
}  # fmt: skip
_GRAPH_KEYS = {"name", "model", "types", "requant", "bounds", "ops"}


def translate(
    graph: dict[str, Any], arrays: Arrays, image_size: tuple[int, int] | None = None
) -> tuple[dict[str, Any], Arrays]:
    """Document and arrays of our format for a graph of NVIDIA's.

    Parameters
    ----------
    graph, arrays : dict
        What ``graph.json`` and ``model.npz`` hold.
    image_size : (int, int) or None
        Decides the average pool's window; None is 224x224.

    Raises
    ------
    InputError
        If keys, types, shapes or names contradict each other.
    UnsupportedError
        If an operator, rounding or formula is not the documented one.
    """
    check_keys(graph, {"ops", "types"}, _GRAPH_KEYS, "recipe")
    if not isinstance(graph["ops"], list) or not all(isinstance(o, dict) for o in graph["ops"]):
        raise InputError("recipe: 'ops' must be a list of objects")
    t = Translation(graph, arrays, image_size)
    for i, op in enumerate(graph["ops"]):
        kind, output = op.get("op"), op.get("output")
        t.where = f"recipe op {i} {kind} {output!r}"
        if not isinstance(kind, str) or kind not in HANDLERS:
            msg = f"{t.where}: operator {kind!r} is unknown; known are {', '.join(HANDLERS)}"
            raise UnsupportedError(msg)
        check_keys(op, _KEYS[kind], _NOTES, t.where)
        if not isinstance(output, str) or output in t.kinds:
            raise InputError(f"{t.where}: output {output!r} must be a new name")
        if kind != "input_quant":
            t.check_inputs(op)
        HANDLERS[kind](t, op)
        t.kinds[output] = op["out_type"]
    return t.document(), t.out
