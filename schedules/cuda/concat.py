"""Concatenation along channels on CUDA, 16 channels a thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm.target import Target

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cuda.elements import Position, load_element
from tvm_q4.schedules.cuda.kernel import GROUP, CudaKernel, Row, padded_channels
from tvm_q4.schedules.cuda.single_setting import PerGroup
from tvm_q4.schedules.layer import Layer


class Concat(PerGroup):
    """Channels of several tensors, one after the other.

    A branch whose ends are multiples of 16 channels is read in vectors, another one element by
    element.
    """

    name = "cuda.concat"
    kinds = ("concat",)

    def applies(self, layer: Layer, target: Target) -> bool:
        """Concatenations along the channels."""
        return super().applies(layer, target) and int(layer.ops[0].attrs["axis"]) in (1, -3)

    def group(self, kernel: CudaKernel, place: Position, c0: Any) -> None:
        values = T.alloc_buffer((GROUP,), "int32", scope="local")
        for i, first, last in _branches(kernel.layer):
            with T.If(tirx.all(c0 + GROUP > first, c0 < last)), T.Then():
                if first % GROUP == 0 and last % GROUP == 0:
                    found = kernel.load(i, place, c0 - first, GROUP)
                    for e in range(GROUP):
                        T.buffer_store(values, found[e], [e])
                else:
                    _take_elements(kernel, values, i, place, c0, (first, last))
        kernel.finish([Row(place, [values[e] for e in range(GROUP)])], c0, GROUP)


def _branches(layer: Layer) -> Iterator[tuple[int, int, int]]:
    """Input of every branch, and its first and last channel; the last one takes the padding too."""
    refs, first = layer.ops[0].refs, 0
    for position, (_, i) in enumerate(refs):
        last = first + layer.inputs[i].shape[1]
        yield i, first, last if position < len(refs) - 1 else padded_channels(layer)
        first = last


def _take_elements(
    kernel: CudaKernel, values: Any, i: int, place: Position, c0: Any, ends: tuple[int, int]
) -> None:
    """Put those of the channels from `c0` on into `values` that lie between the `ends`."""
    last = kernel.layer.inputs[i].shape[1] - 1
    for e in range(GROUP):
        channel = c0 + e
        with T.If(tirx.all(channel >= ends[0], channel < ends[1])), T.Then():
            own = tirx.min(channel - ends[0], last)
            T.buffer_store(values, load_element(kernel, i, place, own), [e])
