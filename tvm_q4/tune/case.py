"""A layer's inputs, and the outputs that every candidate for it must give, bit for bit.

Inputs are random over the full declared range, with noise in channels that only pad. Expected
outputs are the reference executor's. Both are stored as they lie in memory, with a mask of the bits
that are defined (halos are, padded channels are not), so that whatever runs a kernel checks it with
NumPy alone, on this machine or on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_q4.layouts import to_physical
from tvm_q4.ops import attrs_of
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes._rewrite import dataflow_bindings
from tvm_q4.schedules.layer import Layer, Tensor


@dataclass(frozen=True)
class Case:
    """Arrays as they lie in memory.

    Attributes
    ----------
    inputs, outputs : list of ndarray
    masks : list of ndarray
        For each output, an array of its shape and dtype whose set bits are those that count.
    """

    inputs: list[NDArray]
    outputs: list[NDArray]
    masks: list[NDArray]

    def save(self, path: Path) -> None:
        """Write the arrays to an ``.npz``."""
        named = {"x": self.inputs, "y": self.outputs, "m": self.masks}
        arrays = {f"{k}{i}": a for k, group in named.items() for i, a in enumerate(group)}
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read what `save` wrote."""
        with np.load(path) as file:
            return cls(*(numbered(file, prefix) for prefix in "xym"))

    def matches(self, found: Sequence[NDArray]) -> bool:
        """Whether outputs of a kernel are the expected ones."""
        triples = zip(found, self.outputs, self.masks, strict=True)
        return all(_equal(a, b, mask) for a, b, mask in triples)


def numbered(file: Any, prefix: str) -> list[NDArray]:
    """Arrays ``x0``, ``x1``, ... of a loaded ``.npz``."""
    count = sum(name.startswith(prefix) for name in file.files)
    return [file[f"{prefix}{i}"] for i in range(count)]


def _equal(found: NDArray, expected: NDArray, mask: NDArray) -> bool:
    if found.dtype.kind == "f":
        return bool(np.array_equal(found, expected))
    return not np.any((found ^ expected) & mask)


def make_case(fused: tvm.IRModule, layer: Layer, seed: int = 0) -> Case:
    """Inputs and expected outputs of a layer.

    Parameters
    ----------
    fused : tvm.IRModule
        Module of stage "fused" from which `layer` was read.
    layer : Layer
    seed : int
        Of the inputs.
    """
    rng = np.random.default_rng(seed)
    values = [_random(rng, tensor) for tensor in layer.inputs]
    name = _function_of(fused, layer)
    # A linear layer may read a 4-dimensional tensor in memory that its function takes as flat.
    shapes = [[int(d) for d in p.ty.shape] for p in fused[name].params]
    arguments = [v.reshape(s) for v, s in zip(values, shapes, strict=True)]
    result = ReferenceExecutor(fused).run_function(name, arguments)
    results = list(result) if isinstance(result, tuple) else [result]
    inputs = [_in_memory(t, v, rng) for t, v in zip(layer.inputs, values, strict=True)]
    outs = [tensor for _, tensor in layer.outputs]
    expected = [_in_memory(t, v) for t, v in zip(outs, results, strict=True)]
    return Case(inputs, expected, [_mask(t) for t in outs])


def reference_values(
    fused: tvm.IRModule, layer: Layer, rng: np.random.Generator
) -> tuple[list[NDArray], list[NDArray]]:
    """Random logical inputs of a layer, and the reference executor's logical outputs."""
    values = [_random(rng, tensor) for tensor in layer.inputs]
    result = ReferenceExecutor(fused).run_function(_function_of(fused, layer), values)
    return values, list(result) if isinstance(result, tuple) else [result]


def _function_of(fused: tvm.IRModule, layer: Layer) -> str:
    """Name of the function that a layer was read from: their first operators have one name."""
    for gvar, func in fused.functions_items():
        if gvar.name_hint != "main" and isinstance(func, tvm.relax.Function):
            first = dataflow_bindings(func)[0].value
            if str(attrs_of(first)["name"]) == layer.name:
                return str(gvar.name_hint)
    raise AssertionError(f"no function of layer {layer.name!r}")


def _random(rng: np.random.Generator, tensor: Tensor) -> NDArray:
    """A logical tensor over the whole range; both ends occur."""
    shape = tensor.shape[: tensor.rank]
    if tensor.range is None:
        return rng.normal(size=shape).astype(np.float32)
    out = rng.integers(tensor.range.lo, tensor.range.hi, shape, endpoint=True).astype(tensor.dtype)
    out.flat[0], out.flat[-1] = tensor.range.lo, tensor.range.hi
    return out


def _in_memory(tensor: Tensor, values: NDArray, rng: np.random.Generator | None = None) -> NDArray:
    """A tensor as it lies in memory; padded channels hold noise of `rng`, or zeros."""
    if tensor.layout.kind == "NCHW":
        return np.ascontiguousarray(values)
    n, c, h, w = tensor.shape
    full = np.zeros((n, tensor.layout.channels, h, w), values.dtype)
    if rng is not None:
        lo, hi = _noise_range(tensor, values.dtype)
        full[:] = rng.integers(lo, hi, full.shape, endpoint=True)
    full[:, :c] = values.reshape(tensor.shape)
    return to_physical(full, tensor.layout.to_json(), tensor.fill)


def _noise_range(tensor: Tensor, dtype: np.dtype) -> tuple[int, int]:
    if tensor.layout.bits and tensor.range is not None:
        return tensor.range.lo, tensor.range.hi
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _mask(tensor: Tensor) -> NDArray:
    """All bits of the tensor's elements and of its halo."""
    if tensor.range is None or tensor.layout.kind == "NCHW":
        dtype = np.dtype(tensor.dtype if tensor.range is not None else np.int32)
        return np.full(tensor.shape[: tensor.rank], -1, np.int64).astype(dtype)
    n, c, h, w = tensor.shape
    full = np.zeros((n, tensor.layout.channels, h, w), np.int64)
    full[:, :c] = -1
    kind = "int8" if tensor.layout.bits == 4 else tensor.dtype
    return to_physical(full.astype(kind), tensor.layout.to_json(), _all_ones(kind))


def _all_ones(dtype: str) -> int:
    return -1 if np.dtype(dtype).kind == "i" else int(np.iinfo(dtype).max)
