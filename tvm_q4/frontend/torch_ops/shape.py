"""Operators that only move data: reshapes, slices, padding, concatenation, sizes."""

from __future__ import annotations

import math
from typing import Any

from tvm import relax

from tvm_q4.frontend.torch_ops.registry import ImporterFace, NodeView, Value, converts


def _reshaped(imp: ImporterFace, node: NodeView, x: Value, shape: list[int]) -> Value:
    if shape == x.shape:
        return x
    return Value(imp.emit(relax.op.reshape(x.expr, shape), node.label), x.base, x.constant)


def _infer(imp: ImporterFace, node: NodeView, x: Value, sizes: list[int]) -> list[int]:
    """Resolve -1, and the recorded batch in the leading position to the batch asked for."""
    sizes = list(sizes)
    batched = not x.constant and x.shape[0] == imp.batch
    if batched and sizes and sizes[0] == imp.recorded_batch:
        sizes[0] = imp.batch
    total = math.prod(x.shape)
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and known > 0:
        sizes[sizes.index(-1)] = total // known
    if math.prod(sizes) != total or (batched and sizes[0] != imp.batch):
        msg = (
            f"a tensor of shape {x.shape} cannot take the recorded shape {sizes}; the model was "
            "exported for another batch or image size: export it with torch.flatten in place of "
            "view, or leave --batch and --image-size out"
        )
        raise node.unsupported(msg)
    return sizes


@converts("aten.view.default", "aten._unsafe_view.default")
def view(imp: ImporterFace, node: NodeView) -> Value:
    """Reshape to the recorded sizes, specialised to the batch asked for."""
    x = node.tensor("self")
    return _reshaped(imp, node, x, _infer(imp, node, x, node["size"]))


@converts("aten.reshape.default")
def reshape(imp: ImporterFace, node: NodeView) -> Value:
    """As `view`."""
    x = node.tensor("self")
    return _reshaped(imp, node, x, _infer(imp, node, x, node["shape"]))


@converts("aten.flatten.using_ints")
def flatten(imp: ImporterFace, node: NodeView) -> Value:
    """Join the dimensions start_dim..end_dim."""
    x = node.tensor("self")
    rank = len(x.shape)
    start, end = node["start_dim"] % rank, node["end_dim"] % rank
    shape = [*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]]
    return _reshaped(imp, node, x, shape)


@converts("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(imp: ImporterFace, node: NodeView) -> Value:
    """Drop dimensions of size 1; without a list, all but the batch (whose size may change)."""
    x = node.tensor("self")
    rank = len(x.shape)
    dims: Any = node.args.get("dim", list(range(1, rank)))
    chosen = {d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])}
    shape = [s for i, s in enumerate(x.shape) if not (i in chosen and s == 1)]
    return _reshaped(imp, node, x, shape)


@converts("aten.unsqueeze.default")
def unsqueeze(imp: ImporterFace, node: NodeView) -> Value:
    """Insert a dimension of size 1."""
    x = node.tensor("self")
    at = node["dim"] % (len(x.shape) + 1)
    return _reshaped(imp, node, x, [*x.shape[:at], 1, *x.shape[at:]])


def _permuted(imp: ImporterFace, node: NodeView, x: Value, dims: list[int]) -> Value:
    """Permute; the transpose of a matrix is written without axes, as in ``relax.op.linear``."""
    if dims == sorted(dims):
        return x
    axes = None if dims == [1, 0] else dims
    return Value(imp.emit(relax.op.permute_dims(x.expr, axes), node.label), x.base, x.constant)


@converts("aten.permute.default")
def permute(imp: ImporterFace, node: NodeView) -> Value:
    """Reorder the dimensions."""
    x = node.tensor("self")
    return _permuted(imp, node, x, [d % len(x.shape) for d in node["dims"]])


@converts("aten.t.default", "aten.transpose.int", "aten.numpy_T.default")
def transpose(imp: ImporterFace, node: NodeView) -> Value:
    """Swap two dimensions."""
    x = node.tensor("self")
    dims = list(range(len(x.shape)))
    a, b = (node.args.get("dim0", 0) % len(dims), node.args.get("dim1", -1) % len(dims))
    dims[a], dims[b] = dims[b], dims[a]
    return _permuted(imp, node, x, dims)


@converts("aten.slice.Tensor")
def slice_tensor(imp: ImporterFace, node: NodeView) -> Value:
    """One dimension's ``start:end:step`` (option A shortcuts take every second pixel)."""
    x = node.tensor("self")
    dim = node["dim"] % len(x.shape)
    start, end, step = slice(node["start"], node["end"], node["step"]).indices(x.shape[dim])
    if (start, end, step) == (0, x.shape[dim], 1):
        return x
    if dim == 0 or end <= start:
        raise node.unsupported(
            f"slice {start}:{end}:{step} of dimension {dim} of {x.shape} is not supported"
        )
    call = relax.op.strided_slice(x.expr, [dim], [start], [end], [step])
    return Value(imp.emit(call, node.label), node.label)


def _pad(imp: ImporterFace, node: NodeView, value: float) -> Value:
    x, pads = node.tensor("self"), list(node["pad"])
    if any(p < 0 for p in pads):
        raise node.unsupported(f"negative padding {pads} is not supported")
    if not any(pads):
        return x
    pads += [0] * (2 * len(x.shape) - len(pads))
    by_axis = [p for i in range(len(x.shape) - 1, -1, -1) for p in pads[2 * i : 2 * i + 2]]
    if by_axis[0] or by_axis[1]:
        raise node.unsupported("padding along the batch is not supported")
    call = relax.op.nn.pad(x.expr, by_axis, "constant", float(value))
    return Value(imp.emit(call, node.label), node.label)


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
    tensors, dim = node["tensors"], node["dim"]
    shapes = [t.shape for t in tensors]
    dim %= len(shapes[0])
    rest = {(*s[:dim], *s[dim + 1 :]) for s in shapes}
    if len(rest) != 1 or dim == 0:
        raise node.unsupported(f"tensors of shapes {shapes} cannot be joined along dimension {dim}")
    return Value(imp.emit(relax.op.concat([t.expr for t in tensors], dim), node.label), node.label)


@converts("aten.sym_size.int")
def sym_size(_imp: ImporterFace, node: NodeView) -> int:
    """Size of one dimension, a plain int here since shapes are static."""
    return node.tensor("self").shape[int(node["dim"])]
