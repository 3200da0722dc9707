"""Data movement: reshapes specialised to the batch asked for, permutations, slices, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import relax

from tvm_q4.frontend.common.values import ImporterFace, NodeFace, Value


def reshaped(imp: ImporterFace, node: NodeFace, x: Value, shape: Sequence[int]) -> Value:
    """`x` with the given sizes; the tensor keeps its producer's name and range."""
    if list(shape) == x.shape:
        return x
    expr = imp.emit(relax.op.reshape(x.expr, list(shape)), node.label)
    return Value(expr, x.base, x.constant, x.range)


def infer_sizes(imp: ImporterFace, node: NodeFace, x: Value, sizes: Sequence[int]) -> list[int]:
    """Resolve -1, and the recorded batch in the leading position to the batch asked for."""
    sizes = list(sizes)
    batched = not x.constant and bool(x.shape) and x.shape[0] == imp.batch
    if batched and sizes and sizes[0] == imp.recorded_batch:
        sizes[0] = imp.batch
    total = math.prod(x.shape)
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and known > 0:
        sizes[sizes.index(-1)] = total // known
    if (
        math.prod(sizes) != total
        or min(sizes, default=0) < 1
        or (batched and sizes[0] != imp.batch)
    ):
        msg = (
            f"a tensor of shape {x.shape} cannot take the recorded shape {sizes}; the model was "
            "exported for another batch or image size: export it with torch.flatten in place of "
            "view, or leave --batch and --image-size out"
        )
        raise node.unsupported(msg)
    return sizes


def flattened(x: Value, start: int, end: int) -> list[int]:
    """Shape of `x` with the dimensions `start`..`end` joined."""
    return [*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]]


def permuted(imp: ImporterFace, node: NodeFace, x: Value, dims: list[int]) -> Value:
    """Permute; the transpose of a matrix is written without axes, as in ``relax.op.linear``."""
    if dims == sorted(dims):
        return x
    axes = None if dims == [1, 0] else dims
    expr = imp.emit(relax.op.permute_dims(x.expr, axes), node.label)
    return Value(expr, x.base, x.constant, x.range)


def sliced(imp: ImporterFace, node: NodeFace, x: Value, dim: int, bounds: slice) -> Value:
    """One dimension's ``start:end:step`` (option A shortcuts take every second pixel)."""
    start, end, step = bounds.indices(x.shape[dim])
    if (start, end, step) == (0, x.shape[dim], 1):
        return x
    if dim == 0 or end <= start or step < 1:
        raise node.unsupported(
            f"slice {start}:{end}:{step} of dimension {dim} of {x.shape} is not supported"
        )
    call = relax.op.strided_slice(x.expr, [dim], [start], [end], [step])
    return Value(imp.emit(call, node.label), node.label, range=x.range)


def padded(
    imp: ImporterFace, node: NodeFace, x: Value, widths: Sequence[int], value: float
) -> Value:
    """Pad with one number; `widths` are (before, after) of each axis in turn."""
    if any(p < 0 for p in widths):
        raise node.unsupported(f"negative padding {list(widths)} is not supported")
    if not any(widths):
        return x
    if widths[0] or widths[1]:
        raise node.unsupported("padding along the batch is not supported")
    call = relax.op.nn.pad(x.expr, list(widths), "constant", float(value))
    return Value(imp.emit(call, node.label), node.label)


def concatenated(imp: ImporterFace, node: NodeFace, tensors: list[Value], dim: int) -> Value:
    """Join tensors along one dimension, not the batch."""
    shapes = [t.shape for t in tensors]
    dim = dim % len(shapes[0]) if shapes and -len(shapes[0]) <= dim < len(shapes[0]) else 0
    rest = {(*s[:dim], *s[dim + 1 :]) for s in shapes}
    if len(rest) != 1 or len({len(s) for s in shapes}) != 1 or dim == 0:
        raise node.unsupported(f"tensors of shapes {shapes} cannot be joined along dimension {dim}")
    return Value(imp.emit(relax.op.concat([t.expr for t in tensors], dim), node.label), node.label)
