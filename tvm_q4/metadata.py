"""The metadata of a library: what was compiled, how each layer runs, what decided that."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from tvm_q4 import __version__, ops
from tvm_q4.meta import model_meta
from tvm_q4.model_report import MODEL_FACTS
from tvm_q4.relay_passes._rewrite import dataflow_bindings
from tvm_q4.relay_passes.lower_to_tir import Lowered, LoweredCall, has_quantized_input
from tvm_q4.schedules.layer import Tensor
from tvm_q4.variants import Variant

FORMAT, VERSION = "tvm-q4/library", 1


@dataclass(frozen=True)
class EntrySet:
    """A compiled entry set: its variant, its calls, and the bytes of its planned memory."""

    variant: Variant
    lowered: Lowered
    arena_bytes: int


def build_metadata(
    integer: tvm.IRModule,
    fused: tvm.IRModule,
    entries: list[EntrySet],
    target: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Metadata of one compiled library.

    Parameters
    ----------
    integer, fused : tvm.IRModule
        The module before and after ``FuseEpilogue``.
    entries : list of EntrySet
        One, or one a CUDA family: the newest one's layers stand at the top level too.
    target : dict
        As `tvm_q4.variants.describe` gives it.
    facts : dict
        ``sha256`` of the model, ``float_ops`` and what else the driver knows.
    """
    families = [_family(entry) for entry in entries if entry.variant.family is not None]
    meta = model_meta(integer)
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {k: meta.get(k) for k in MODEL_FACTS} | {"sha256": facts["sha256"]},
        "target": target,
        "batch": int(integer["main"].params[0].ty.shape[0]),
        "input": _input(fused, meta),
        "output": _output(integer, meta),
        "classes": meta.get("classes"),
        "two_sided_adds": meta.get("two_sided_adds", []),
        "float_ops": facts["float_ops"],
        **_entry_set(entries[-1]),
        **({"families": families} if families else {}),
        "tools": {
            "tvm_q4": __version__,
            "apache-tvm": version("apache-tvm"),
            "apache-tvm-ffi": version("apache-tvm-ffi"),
        },
    }


def _entry_set(entry: EntrySet) -> dict[str, Any]:
    lowered, target = entry.lowered, entry.variant.target
    return {
        "layers": [_layer(c, lowered, target) for c in lowered.calls if _is_layer(c)],
        "calls": [_call(c) for c in lowered.calls],
        "memory": {
            "arena_bytes": entry.arena_bytes,
            "weight_bytes": sum(lowered.weight_bytes.values()),
        },
    }


def _family(entry: EntrySet) -> dict[str, Any]:
    variant = entry.variant
    return {"family": variant.family, "archs": list(variant.archs), **_entry_set(entry)}


def _is_layer(call: LoweredCall) -> bool:
    return call.layer.kind in ("conv2d", "dense")


def _input(fused: tvm.IRModule, meta: dict[str, Any]) -> dict[str, Any]:
    param = fused["main"].params[0]
    entry = {
        "name": param.name,
        "shape": [int(d) for d in param.ty.shape],
        "dtype": str(param.ty.dtype),
        "transform": meta.get("transform"),
        "quantized": None,
    }
    if entry["dtype"] != "float32":
        info = np.iinfo(entry["dtype"])
        lo, hi = meta.get("input_range", (int(info.min), int(info.max)))
        entry["quantized"] = {"dtype": entry["dtype"], "lo": lo, "hi": hi}
    elif has_quantized_input(fused):
        entry["quantized"] = _input_quantizer(fused)
    return entry


def _input_quantizer(fused: tvm.IRModule) -> dict[str, Any]:
    for b in dataflow_bindings(fused["main"]):
        if isinstance(b.value, relax.Call) and isinstance(b.value.op, relax.GlobalVar):
            call = dataflow_bindings(fused[b.value.op])[0].value
            if ops.is_q4(call, "quantize"):
                a = ops.attrs_of(call)
                return {
                    "name": a["name"],
                    "dtype": a["dtype"],
                    "lo": a["qmin"],
                    "hi": a["qmax"],
                    "scale": float(ops.const_array(call.args[1]).ravel()[0]),
                    "zero_point": int(ops.const_array(call.args[2]).ravel()[0]),
                    "form": a["form"],
                    "numerator": a["numerator"],
                    "denominator": a["denominator"],
                }
    raise AssertionError("no quantize on the input")


def _output(integer: tvm.IRModule, meta: dict[str, Any]) -> dict[str, Any]:
    result = integer["main"].body.body
    dtype = str(result.ty.dtype)
    return {
        "name": "output",
        "shape": [int(d) for d in result.ty.shape],
        "dtype": dtype,
        "integer": dtype != "float32",
        "scale": meta.get("output_scale"),
        "scale_form": meta.get("output_scale_form"),
        "zero_point": meta.get("output_zero_point"),
    }


def _layer(call: LoweredCall, lowered: Lowered, target: Target) -> dict[str, Any]:
    layer, op = call.layer, call.layer.ops[0]
    weight = op.params["weight"]
    n, _, oh, ow = layer.shape
    macs = int(weight.size) * oh * ow
    assert layer.data.range is not None
    activation_bits = 8 if layer.data.range.bits > 4 else 4
    return {
        "name": layer.name,
        "op": layer.kind,
        "weight_bits": op.attrs["weight_bits"],
        "activation_bits": activation_bits,
        "activation": layer.data.range.tag,
        "executes_as": call.choice.rule.executes_as(layer, target, call.choice.params),
        "params": int(weight.size),
        "macs": macs,
        "bops": macs * op.attrs["weight_bits"] * activation_bits,
        "weight_bytes": lowered.weight_bytes[layer.name],
        "in_shape": list(layer.data.shape),
        "out_shape": [n, layer.shape[1], oh, ow],
        "signature": call.signature,
        "rule": call.choice.rule.name,
        "rule_params": call.choice.params,
        "source": call.choice.source,
        "predicted_us": _predicted_us(call, target),
        "kernel": call.kernel,
    }


def _predicted_us(call: LoweredCall, target: Target) -> float | None:
    """Predicted time on the target's device; None on CPUs, where predictions only rank."""
    if target.kind.name != "cuda":
        return None
    return round(call.choice.rule.predict(call.layer, target, call.choice.params), 3)


def _call(call: LoweredCall) -> dict[str, Any]:
    return {
        "kernel": call.kernel,
        "layer": call.layer.name,
        "outputs": [_tensor(t) for _, t in call.layer.outputs],
    }


def _layout(tensor: Tensor) -> dict[str, Any]:
    """A layout with what it takes to unpack elements: their range decides on a sign."""
    packed = tensor.layout.bits and tensor.range is not None
    return tensor.layout.to_json() | ({"dtype": tensor.range.dtype} if packed else {})


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape[: tensor.rank]),
        "dtype": tensor.dtype,
        "lo": tensor.range.lo if tensor.range else None,
        "hi": tensor.range.hi if tensor.range else None,
        "layout": _layout(tensor),
    }
