"""Strides, dilations and padding as ONNX states them, with ``auto_pad``."""

from __future__ import annotations

from collections.abc import Sequence

from tvm_q4.frontend.onnx_ops.registry import NodeView


def positives(node: NodeView, name: str) -> list[int]:
    """Two positive numbers of an attribute, 1 where it is left out."""
    values = node.integers(name, [1, 1])
    if len(values) != 2 or min(values) < 1:
        raise node.unsupported(f"{name} {values} are not two positive numbers")
    return values


def explicit_padding(
    node: NodeView,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Padding as (top, left, bottom, right).

    ``SAME_UPPER`` and ``SAME_LOWER`` make ``ceil(size / stride)`` positions, the odd pixel after or
    before (ONNX, operator Conv).
    """
    mode = node.text("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = node.integers("pads", [0, 0, 0, 0])
        if len(pads) != 4 or min(pads) < 0:
            raise node.unsupported(f"pads {pads} are not four numbers of 0 or more")
        return pads
    if mode == "VALID":
        return [0, 0, 0, 0]
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise node.unsupported(f"auto_pad {mode!r} is unknown")
    if list(dilation) != [1, 1]:
        raise node.unsupported(
            f"auto_pad with dilations {list(dilation)} means different paddings to different "
            "runtimes; state the pads"
        )
    less, more = [], []
    for n, k, s in zip(size, kernel, strides, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        less.append(total // 2)
        more.append(total - total // 2)
    return [*less, *more] if mode == "SAME_UPPER" else [*more, *less]
