"""Pools with explicit windows; global average pools are average pools of one window."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from tvm_q4.frontend.common.values import ImporterFace, NodeFace, Value, positive
from tvm_q4.ops import pooled_size


@dataclass(frozen=True)
class Windows:
    """Windows of a pool along height and width; `padding` is (top, left, bottom, right)."""

    kernel: list[int]
    strides: list[int]
    padding: list[int]
    dilation: list[int]
    ceil: bool


def _pooled(x: Value, node: NodeFace, w: Windows) -> list[int]:
    """Output height and width; in ceil mode no window starts in the padding after (PyTorch)."""
    out = []
    for i in (0, 1):
        size, pads = x.shape[2 + i], w.padding[i] + w.padding[i + 2]
        n = pooled_size(size, w.kernel[i], w.strides[i], pads, w.dilation[i], w.ceil)
        out.append(n - int(w.ceil and (n - 1) * w.strides[i] >= size + w.padding[i]))
    return positive(out, node)


def _check_rank(node: NodeFace, x: Value) -> None:
    if len(x.shape) != 4:
        raise node.unsupported(f"only 2-D pools of [N, C, H, W] are supported, found {x.shape}")


def max_pool(imp: ImporterFace, node: NodeFace, x: Value, w: Windows) -> Value:
    """``relax.nn.max_pool2d``; ceil mode becomes extra padding, which a maximum never sees."""
    _check_rank(node, x)
    sizes = _pooled(x, node, w)
    reach = [(sizes[i] - 1) * w.strides[i] + w.dilation[i] * (w.kernel[i] - 1) + 1 for i in (0, 1)]
    before = w.padding[:2]
    after = [max(w.padding[2 + i], reach[i] - x.shape[2 + i] - before[i]) for i in (0, 1)]
    call = relax.op.nn.max_pool2d(x.expr, w.kernel, w.strides, [*before, *after], w.dilation)
    return Value(imp.emit(call, node.label), f"{node.label}.out")


def average_pool(
    imp: ImporterFace, node: NodeFace, x: Value, w: Windows, *, include_pad: bool
) -> Value:
    """``relax.nn.avg_pool2d``."""
    _check_rank(node, x)
    sizes = _pooled(x, node, w)
    call = relax.op.nn.avg_pool2d(
        x.expr, w.kernel, w.strides, w.padding, ceil_mode=w.ceil, count_include_pad=include_pad
    )
    out = imp.emit(call, node.label)
    if [int(d) for d in out.ty.shape][2:] != sizes:
        raise node.unsupported(
            "a ceil-mode average pool whose last window starts in the padding is not supported"
        )
    return Value(out, f"{node.label}.out")


def global_average(
    imp: ImporterFace, node: NodeFace, x: Value, *, keep: bool, name: str | None = None
) -> Value:
    """Mean over height and width, [N, C, 1, 1], or [N, C] where `keep` is off."""
    _check_rank(node, x)
    out = imp.emit(relax.op.nn.avg_pool2d(x.expr, x.shape[2:]), name or node.label)
    if not keep:
        out = imp.emit(relax.op.reshape(out, x.shape[:2]), f"{node.label}.flat")
    return Value(out, f"{node.label}.out")
