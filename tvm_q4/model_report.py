"""What an integer module holds, in the words of a library's metadata: layers, bits, BOPs."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4.meta import model_meta
from tvm_q4.model_hash import model_hash
from tvm_q4.quant import IntRange
from tvm_q4.ranges import value_ranges
from tvm_q4.relay_passes._rewrite import dataflow_bindings, dtype_of, op_name, shape_of, tensor_name
from tvm_q4.relay_passes.check_integer_only import check_integer_only

FORMAT, VERSION = "tvm-q4/model", 1
FLOAT_BITS = 32
MODEL_FACTS = ("name", "source_format", "source_tool", "source_details")
_FLOAT_LAYERS = {"relax.nn.conv2d": "conv2d", "relax.matmul": "dense"}


def describe_model(mod: tvm.IRModule) -> dict[str, Any]:
    """Facts about a module of the integer stage.

    Returns
    -------
    dict
        ``format``, ``version``, ``model``, ``batch``, ``input``, ``output``, ``classes``,
        ``layers`` and ``float_ops``, each as in a library's metadata where that has it. Layers that
        stay float are among ``layers`` with 32 bits.
    """
    meta = model_meta(mod)
    main = mod["main"]
    ranges = value_ranges(mod)
    layers = [_layer(b, ranges) for b in dataflow_bindings(main) if _is_layer(b.value)]
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {key: meta.get(key) for key in MODEL_FACTS} | {"sha256": model_hash(mod)},
        "batch": shape_of(main.params[0])[0],
        "input": _tensor(main.params[0]) | {"transform": meta.get("transform")},
        "output": _tensor(main.body.body),
        "classes": meta.get("classes"),
        "layers": layers,
        "float_ops": check_integer_only(mod),
    }


def _tensor(expr: relax.Expr) -> dict[str, Any]:
    return {"name": str(expr.name), "shape": list(shape_of(expr)), "dtype": dtype_of(expr)}


def _is_layer(value: relax.Expr) -> bool:
    return op_name(value) in ("q4.conv2d", "q4.dense", *_FLOAT_LAYERS)


def _layer(binding: relax.VarBinding, ranges: dict[relax.Var, IntRange]) -> dict[str, Any]:
    call = binding.value
    data, weight = call.args[0], shape_of(call.args[1])
    quantized = ops.is_q4(call)
    w_bits = int(call.attrs["weight_bits"]) if quantized else FLOAT_BITS
    a_bits = _activation_bits(ranges[data]) if quantized else FLOAT_BITS
    params, out = _product(weight), shape_of(binding.var)
    macs = params * _product(out[2:]) if len(weight) == 4 else params
    return {
        "name": tensor_name(binding),
        "op": op_name(call).removeprefix("q4.") if quantized else _FLOAT_LAYERS[op_name(call)],
        "weight_bits": w_bits,
        "activation_bits": a_bits,
        "activation": ranges[data].tag if quantized else "f32",
        "params": params,
        "macs": macs,
        "bops": macs * w_bits * a_bits,
        "weight_bytes": -(-params * w_bits // 8),
        "in_shape": _four_axes(shape_of(data)),
        "out_shape": _four_axes(out),
    }


def _activation_bits(values: IntRange) -> int:
    return 4 if values.bits <= 4 else 8


def _four_axes(shape: tuple[int, ...]) -> list[int]:
    """A shape as [N, C, H, W], as libraries state it for linear layers too."""
    return [*shape, 1, 1][:4]


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
