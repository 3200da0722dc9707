"""Data movement, on floats and on integers alike."""

from __future__ import annotations

import math

from tvm_q4.frontend.common import shapes
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.onnx_ops.registry import NodeView, axis_of, converts


@converts("Reshape")
def reshape(imp: ImporterFace, node: NodeView) -> Value:
    """Reshape to constant sizes, specialised to the batch asked for."""
    x, sizes = node.tensor(0), node.integers_of(1) or []
    if sizes.count(-1) > 1 or any(s < -1 for s in sizes):
        raise node.unsupported(f"the shape {sizes} is no shape")
    if not node.integer("allowzero", 0):
        if any(s == 0 and i >= len(x.shape) for i, s in enumerate(sizes)):
            raise node.unsupported(f"the shape {sizes} copies dimensions that {x.shape} lacks")
        sizes = [x.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return shapes.reshaped(imp, node, x, shapes.infer_sizes(imp, node, x, sizes))


@converts("Flatten")
def flatten(imp: ImporterFace, node: NodeView) -> Value:
    """A matrix of the dimensions before `axis` and those from there on."""
    x, axis = node.tensor(0), node.integer("axis", 1)
    rank = len(x.shape)
    if not -rank <= axis <= rank:
        raise node.unsupported(f"axis {axis} is outside a tensor of {rank} dimensions")
    axis = axis % rank if axis < 0 else axis
    return shapes.reshaped(imp, node, x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


def _axes(node: NodeView) -> list[int] | None:
    """Axes: an input, or before opset 13 an attribute; None where they are left out."""
    return node.optional_integers("axes") if "axes" in node.attrs else node.integers_of(1)


@converts("Squeeze")
def squeeze(imp: ImporterFace, node: NodeView) -> Value:
    """Drop dimensions of size 1; without a list, all but the batch (whose size may change)."""
    x, axes = node.tensor(0), _axes(node)
    rank = len(x.shape)
    if axes is None:
        chosen = {i for i in range(1, rank) if x.shape[i] == 1}
    else:
        chosen = {axis_of(node, a, rank) for a in axes}
    if any(x.shape[i] != 1 for i in chosen):
        raise node.unsupported(f"axes {axes} of {x.shape} are not all of size 1")
    return shapes.reshaped(imp, node, x, [s for i, s in enumerate(x.shape) if i not in chosen])


@converts("Unsqueeze")
def unsqueeze(imp: ImporterFace, node: NodeView) -> Value:
    """Insert dimensions of size 1."""
    x, axes = node.tensor(0), _axes(node) or []
    rank = len(x.shape) + len(axes)
    shape = list(x.shape)
    for axis in sorted({axis_of(node, a, rank) for a in axes}):
        shape.insert(axis, 1)
    return shapes.reshaped(imp, node, x, shape)


@converts("Transpose")
def transpose(imp: ImporterFace, node: NodeView) -> Value:
    """Reorder the dimensions; without a list, reverse them."""
    x = node.tensor(0)
    rank = len(x.shape)
    dims = node.integers("perm", list(range(rank))[::-1])
    if sorted(dims) != list(range(rank)):
        raise node.unsupported(f"perm {dims} does not fit a tensor of {rank} dimensions")
    return shapes.permuted(imp, node, x, dims)


@converts("Concat")
def concat(imp: ImporterFace, node: NodeView) -> Value:
    """Join tensors along one dimension, not the batch."""
    tensors = [node.tensor(i) for i in range(len(node.inputs))]
    kinds = {t.dtype for t in tensors}
    if kinds != {"float32"}:
        raise node.unsupported(f"tensors of types {sorted(kinds)} cannot be joined, only float32")
    return shapes.concatenated(imp, node, tensors, node.integer("axis"))


@converts("Slice")
def slice_(imp: ImporterFace, node: NodeView) -> Value:
    """``start:end:step`` of some dimensions, not the batch."""
    x = node.tensor(0)
    if node.opset < 10:
        lists = [node.integers(n) for n in ("starts", "ends")] + [node.optional_integers("axes")]
    else:
        lists = [node.integers_of(i) for i in (1, 2, 3)]
    starts, ends = lists[0] or [], lists[1] or []
    axes = lists[2] if lists[2] is not None else list(range(len(starts)))
    steps = (node.integers_of(4) if node.opset >= 10 else None) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise node.unsupported(f"starts {starts}, ends {ends}, axes {axes}, steps {steps} disagree")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = axis_of(node, axis, len(x.shape))
        if step < 1:
            raise node.unsupported(f"step {step} is not positive")
        x = shapes.sliced(imp, node, x, dim, slice(start, end, step))
    return x


@converts("Pad")
def pad(imp: ImporterFace, node: NodeView) -> Value:
    """Pad with one number; reflection and repetition are errors."""
    x, mode = node.tensor(0), node.text("mode", "constant")
    if mode != "constant":
        raise node.unsupported(f"padding mode {mode!r} is not supported, only 'constant'")
    if x.dtype != "float32":
        raise node.unsupported(f"padding of {x.dtype} is not supported, only of float32")
    if node.opset < 11:
        pads, value = node.integers("pads"), node.number("value", 0.0)
    else:
        array = node.array(2)
        pads, value = node.integers_of(1) or [], 0.0 if array is None else float(array.item())
    rank = len(x.shape)
    axes = node.integers_of(3) if node.opset >= 18 else None
    axes = list(range(rank)) if axes is None else [axis_of(node, a, rank) for a in axes]
    if len(pads) != 2 * len(axes):
        raise node.unsupported(f"pads {pads} do not fit {len(axes)} dimensions")
    widths = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        widths[2 * axis : 2 * axis + 2] = [pads[i], pads[i + len(axes)]]
    return shapes.padded(imp, node, x, widths, value)
