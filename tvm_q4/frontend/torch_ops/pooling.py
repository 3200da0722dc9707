"""Pooling; global and adaptive average pools become ``relax.nn.avg_pool2d`` with a window."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tvm import relax

from tvm_q4.frontend.common.pools import Windows, average_pool, global_average, max_pool
from tvm_q4.frontend.common.values import ImporterFace, Value
from tvm_q4.frontend.torch_ops.registry import NodeView, converts, pair


def _windows(node: NodeView) -> Windows:
    kernel = pair(node["kernel_size"])
    strides = pair(node["stride"]) if node["stride"] else kernel
    padding, dilation = pair(node["padding"]) * 2, pair(node.args.get("dilation", 1))
    return Windows(kernel, strides, padding, dilation, bool(node["ceil_mode"]))


@converts("aten.max_pool2d.default")
def max_pool2d(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.max_pool2d``."""
    return max_pool(imp, node, node.tensor("self"), _windows(node))


@converts("aten.max_pool2d_with_indices.default")
def max_pool2d_with_indices(imp: ImporterFace, node: NodeView) -> tuple[Value, ...]:
    """As `max_pool2d`; the indices, item 1, are not available."""
    return (max_pool2d(imp, node),)


@converts("aten.avg_pool2d.default")
def avg_pool2d(imp: ImporterFace, node: NodeView) -> Value:
    """``relax.nn.avg_pool2d``."""
    if node["divisor_override"] is not None:
        raise node.unsupported("average pooling with divisor_override is not supported")
    include = bool(node["count_include_pad"])
    return average_pool(imp, node, node.tensor("self"), _windows(node), include_pad=include)


def _adaptive_window(size: int, out: int) -> tuple[int, int] | None:
    """Kernel and stride where all adaptive windows have one size and one step, else None."""
    starts = [i * size // out for i in range(out)]
    ends = [-(-(i + 1) * size // out) for i in range(out)]
    kernels = {e - s for s, e in zip(starts, ends, strict=True)}
    steps = {b - a for a, b in pairwise(starts)} or {1}
    return (kernels.pop(), steps.pop()) if len(kernels) == 1 and len(steps) == 1 else None


@converts("aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(imp: ImporterFace, node: NodeView) -> Value:
    """Average pool with the windows that the output size asks for."""
    x = node.tensor("self")
    wanted = [x.shape[2 + i] if o is None else int(o) for i, o in enumerate(node["output_size"])]
    windows = [_adaptive_window(x.shape[2 + i], wanted[i]) for i in (0, 1)]
    if None in windows:
        msg = (
            f"adaptive average pool from {x.shape[2:]} to {wanted} has windows of several sizes; "
            "use an image size that divides"
        )
        raise node.unsupported(msg)
    kernel, stride = ([w[i] for w in windows if w] for i in (0, 1))
    call = relax.op.nn.avg_pool2d(x.expr, kernel, stride)
    return Value(imp.emit(call, node.label), f"{node.label}.out")


def _is_global(x: Value, dims: list[int]) -> bool:
    return len(x.shape) == 4 and sorted(d % 4 for d in dims) == [2, 3]


@converts("aten.mean.dim")
def mean(imp: ImporterFace, node: NodeView) -> Value:
    """Mean over height and width, as an average pool of one window."""
    x = node.tensor("self")
    dims: Any = node["dim"]
    if dims is None or not _is_global(x, dims):
        raise node.unsupported(
            f"a mean over dimensions {dims} of {x.shape} is not supported, only over (2, 3)"
        )
    return global_average(imp, node, x, keep=bool(node["keepdim"]))
