"""Operators that only move data: reshapes, slices, padding, concatenation, sizes."""

from __future__ import annotations

from typing import Any

from tvm_q4.frontend.common.shapes import (
    concatenated,
    flattened,
    infer_sizes,
    padded,
    permuted,
    reshaped,
    sliced,
)
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.torch_ops.registry import NodeView, converts


@converts("aten.view.default", "aten._unsafe_view.default")
def view(imp: ImporterFace, node: NodeView) -> Value:
    """Reshape to the recorded sizes, specialised to the batch asked for."""
    x = node.tensor("self")
    return reshaped(imp, node, x, infer_sizes(imp, node, x, node["size"]))


@converts("aten.reshape.default")
def reshape(imp: ImporterFace, node: NodeView) -> Value:
    """As `view`."""
    x = node.tensor("self")
    return reshaped(imp, node, x, infer_sizes(imp, node, x, node["shape"]))


@converts("aten.flatten.using_ints")
def flatten(imp: ImporterFace, node: NodeView) -> Value:
    """Join the dimensions start_dim..end_dim."""
    x = node.tensor("self")
    rank = len(x.shape)
    start, end = node["start_dim"] % rank, node["end_dim"] % rank
    return reshaped(imp, node, x, flattened(x, start, end))


@converts("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(imp: ImporterFace, node: NodeView) -> Value:
    """Drop dimensions of size 1; without a list, all but the batch (whose size may change)."""
    x = node.tensor("self")
    rank = len(x.shape)
    dims: Any = node.args.get("dim", list(range(1, rank)))
    chosen = {d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])}
    shape = [s for i, s in enumerate(x.shape) if not (i in chosen and s == 1)]
    return reshaped(imp, node, x, shape)


@converts("aten.unsqueeze.default")
def unsqueeze(imp: ImporterFace, node: NodeView) -> Value:
    """Insert a dimension of size 1."""
    x = node.tensor("self")
    at = node["dim"] % (len(x.shape) + 1)
    return reshaped(imp, node, x, [*x.shape[:at], 1, *x.shape[at:]])


@converts("aten.permute.default")
def permute(imp: ImporterFace, node: NodeView) -> Value:
    """Reorder the dimensions."""
    x = node.tensor("self")
    return permuted(imp, node, x, [d % len(x.shape) for d in node["dims"]])


@converts("aten.t.default", "aten.transpose.int", "aten.numpy_T.default")
def transpose(imp: ImporterFace, node: NodeView) -> Value:
    """Swap two dimensions."""
    x = node.tensor("self")
    dims = list(range(len(x.shape)))
    a, b = (node.args.get("dim0", 0) % len(dims), node.args.get("dim1", -1) % len(dims))
    dims[a], dims[b] = dims[b], dims[a]
    return permuted(imp, node, x, dims)


@converts("aten.slice.Tensor")
def slice_tensor(imp: ImporterFace, node: NodeView) -> Value:
    """One dimension's ``start:end:step`` (option A shortcuts take every second pixel)."""
    x = node.tensor("self")
    dim = node["dim"] % len(x.shape)
    return sliced(imp, node, x, dim, slice(node["start"], node["end"], node["step"]))


def _pad(imp: ImporterFace, node: NodeView, value: float) -> Value:
    x, pads = node.tensor("self"), list(node["pad"])
    pads += [0] * (2 * len(x.shape) - len(pads))
    by_axis = [p for i in range(len(x.shape) - 1, -1, -1) for p in pads[2 * i : 2 * i + 2]]
    return padded(imp, node, x, by_axis, value)


@converts("aten.constant_pad_nd.default")
def constant_pad(imp: ImporterFace, node: NodeView) -> Value:
    """Pad with one number."""
    return _pad(imp, node, node["value"])


@converts("aten.pad.default")
def pad(imp: ImporterFace, node: NodeView) -> Value:
    """Pad with one number; reflection and replication are errors."""
    if node["mode"] != "constant":
        raise node.unsupported(f"padding mode {node['mode']!r} is not supported, only 'constant'")
    return _pad(imp, node, node["value"] or 0.0)


@converts("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(imp: ImporterFace, node: NodeView) -> Value:
    """Join tensors along one dimension, not the batch."""
    return concatenated(imp, node, node["tensors"], node["dim"])


@converts("aten.sym_size.int")
def sym_size(_imp: ImporterFace, node: NodeView) -> int:
    """Size of one dimension, a plain int here since shapes are static."""
    return node.tensor("self").shape[int(node["dim"])]
