"""A hand-made library small enough for the tests of its format, loading and running.

The network takes float32 [2, 3, 4, 5]: ``input`` is ``clamp(rint(x / 0.5), -8, 7)`` (int8 NHWC with
a halo and 16 channels), ``double`` is ``2 * input`` (int8), and the result is, for each of 6
classes k, ``(k + 1) * sum over pixels of double[n, k % 3]`` times 0.25.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, te

from tvm_q4.library import export_library

SHAPE = (2, 3, 4, 5)
CLASSES = 6
HALO = (1, 2, 0, 1)
LAYOUT = {"kind": "NHWC", "halo": list(HALO), "channels": 16}
PHYSICAL = (2, 5, 8, 16)


def quantize(x: NDArray) -> NDArray[np.int8]:
    """What the library makes of a float input."""
    return np.clip(np.rint(x * np.float32(2)), -8, 7).astype(np.int8)


def expected(q: NDArray) -> NDArray[np.float32]:
    """The network's result for quantized images [N, 3, 4, 5]."""
    sums = (2 * q.astype(np.int64)).sum((2, 3))
    classes = np.arange(CLASSES)
    return (sums[:, classes % 3] * (classes + 1)).astype(np.float32) * np.float32(0.25)


def _inside(n: Any, h: Any, w: Any, c: Any, value: Any) -> Any:
    row, column = h - HALO[0], w - HALO[1]
    inside = tvm.tirx.all(row >= 0, row < 4, column >= 0, column < 5, c < 3)
    return tvm.tirx.if_then_else(inside, value(n, c, row, column), tvm.tirx.const(0, "int8"))


def _quantize_te(x: te.Tensor) -> te.Tensor:
    def element(n: Any, c: Any, h: Any, w: Any) -> Any:
        rounded = tvm.tirx.nearbyint(x[n, c, h, w] * tvm.tirx.const(2, "float32"))
        low, high = tvm.tirx.const(-8, "float32"), tvm.tirx.const(7, "float32")
        return tvm.tirx.max(tvm.tirx.min(rounded, high), low).astype("int8")

    return te.compute(PHYSICAL, lambda n, h, w, c: _inside(n, h, w, c, element), name="quantized")


def _import_te(x: te.Tensor) -> te.Tensor:
    return te.compute(
        PHYSICAL, lambda n, h, w, c: _inside(n, h, w, c, lambda *i: x[i]), name="imported"
    )


def _double_te(q: te.Tensor) -> te.Tensor:
    return te.compute(
        PHYSICAL, lambda *i: (q[i] * tvm.tirx.const(2, "int8")).astype("int8"), name="doubled"
    )


def _sum_te(q: te.Tensor) -> te.Tensor:
    h, w = te.reduce_axis((0, 4), "h"), te.reduce_axis((0, 5), "w")
    sums = te.compute(
        (2, CLASSES),
        lambda n, k: te.sum(q[n, h + HALO[0], w + HALO[1], k % 3].astype("int32"), axis=[h, w]),
        name="sums",
    )
    scale = tvm.tirx.const(0.25, "float32")
    return te.compute(
        (2, CLASSES), lambda n, k: (sums[n, k] * (k + 1)).astype("float32") * scale, name="logits"
    )


def module(suffix: str = "") -> tvm.IRModule:
    """The network as Relax calls of TensorIR kernels, as `lower_to_tir` leaves it.

    `suffix` ends the name of each function.
    """
    builder = relax.BlockBuilder()
    for name, dtype in (("main", "float32"), ("main_quantized", "int8")):
        first, hint = (
            (_quantize_te, "quantize_input") if name == "main" else (_import_te, "import_input")
        )
        x = relax.Var("x", relax.TensorType(SHAPE, dtype))
        with builder.function(name + suffix, [x]):
            with builder.dataflow():
                q = builder.emit_te(first, x, primfunc_name_hint=hint + suffix)
                d = builder.emit_te(_double_te, q, primfunc_name_hint="double" + suffix)
                sums = builder.emit_te(_sum_te, d, primfunc_name_hint="head" + suffix)
                out = builder.emit_output(sums)
            builder.emit_func_output(out)
    return builder.get()


def _call(kernel: str, layer: str, output: dict[str, Any]) -> dict[str, Any]:
    return {"kernel": kernel, "layer": layer, "outputs": [output]}


def metadata() -> dict[str, Any]:
    """Metadata of the network in the form that the compiler writes."""
    q = {"shape": [2, 3, 4, 5], "dtype": "int8", "layout": LAYOUT}
    logits = {"name": "fc.dq", "shape": [2, CLASSES], "dtype": "float32", "lo": None, "hi": None}
    return {
        "format": "tvm-q4/library",
        "version": 1,
        "model": {"name": "tiny", "source_format": "test", "source_tool": None, "sha256": "0" * 64},
        "target": {"kind": "llvm"},
        "batch": 2,
        "input": {
            "name": "x",
            "shape": list(SHAPE),
            "dtype": "float32",
            "transform": None,
            "quantized": {
                "name": "input", "dtype": "int8", "lo": -8, "hi": 7, "scale": 0.5, "zero_point": 0,
                "form": "reciprocal", "numerator": 1.0, "denominator": 1.0,
            },
        },
        "output": {
            "name": "output", "shape": [2, CLASSES], "dtype": "float32", "integer": False,
            "scale": None, "scale_form": None,
        },
        "classes": None,
        "layers": [
            {
                "name": "double", "op": "conv2d", "weight_bits": 4, "activation_bits": 4,
                "kernel": "double", "executes_as": "loops", "params": 9, "macs": 360, "bops": 5760,
                "weight_bytes": 16, "in_shape": [2, 3, 4, 5], "out_shape": [2, 3, 4, 5],
            },
        ],
        "float_ops": [],
        "calls": [
            _call("quantize_input", "input", {"name": "input", "lo": -8, "hi": 7, **q}),
            _call("double", "double", {"name": "double", "lo": -16, "hi": 14, **q}),
            _call("head", "fc", {**logits, "layout": {"kind": "NCHW"}}),
        ],
        "memory": {"arena_bytes": 0, "weight_bytes": 0},
        "tools": {"tvm_q4": "0", "apache-tvm": "0", "apache-tvm-ffi": "0"},
    }  # fmt: skip


def build(mod: tvm.IRModule | None = None, target: Any = None) -> Any:
    """TVM executable of the network, or of `mod`; no pass fuses its kernels."""
    passes = tvm.transform.Sequential(
        [
            relax.transform.CallTIRRewrite(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    target = target or tvm.target.Target("llvm")
    return relax.build(mod or module(), target=target, relax_pipeline=passes)


def write(path: Path, **changes: Any) -> Path:
    """Write the library with top-level metadata entries replaced by `changes`."""
    return export_library(build(), metadata() | changes, path)
