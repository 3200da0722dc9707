"""Facts about a model that travel with its Relax module, as the module attribute ``q4.meta``."""

from __future__ import annotations

import json
from typing import Any

import tvm

META_ATTR = "q4.meta"


def model_meta(mod: tvm.IRModule) -> dict[str, Any]:
    """Facts stored in `mod`; an empty dict where a frontend stored none.

    Keys in use: ``name``, ``source_format``, ``source_tool``, ``source_details`` (an object of
    further facts about the file, as text: ``opset``, ``quantization``, ...), ``transform`` (name of
    the input transform), ``classes`` (list of class names), ``input_range`` ([lo, hi] where the
    module's input is an integer tensor), ``output_scale``, ``output_scale_form`` and
    ``output_zero_point`` (where the integer output is asked for), and ``onnx_tensors`` (name of the
    ONNX tensor by the name of a q4.quantize).
    """
    if mod.attrs is None or META_ATTR not in mod.attrs:
        return {}
    return json.loads(str(mod.attrs[META_ATTR]))


def with_meta(mod: tvm.IRModule, **facts: Any) -> tvm.IRModule:
    """A copy of `mod` with `facts` merged into its stored facts (JSON values only)."""
    return mod.with_attr(META_ATTR, json.dumps(model_meta(mod) | facts, sort_keys=True))
