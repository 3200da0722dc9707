"""Data movement on integer tensors on CUDA: a thread makes one word, or one plain element."""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cuda.elements import Position, load_element, store_word
from tvm_q4.schedules.cuda.kernel import CudaKernel, plain_index
from tvm_q4.schedules.cuda.single_setting import SingleSetting, launch
from tvm_q4.schedules.gather import constant, source
from tvm_q4.schedules.layout import WORD_BITS


class Gather(SingleSetting):
    """One output element is one input element or a constant; see `gather.source`."""

    name = "cuda.gather"
    kinds = ("gather",)

    def emit(self, kernel: CudaKernel) -> None:
        n, c, h, w = kernel.layer.shape
        layout = kernel.layer.outputs[0][1].layout
        if layout.bits:
            launch(kernel, n * h * w * layout.words, lambda at: _word(kernel, at))
        else:
            launch(kernel, n * c * h * w, lambda at: _plain(kernel, at))


def _word(kernel: CudaKernel, at: Any) -> None:
    """Word `at` of the output, counted without the halo."""
    _, _, h, w = kernel.layer.shape
    layout = kernel.layer.outputs[0][1].layout
    pixel, per = at // layout.words, WORD_BITS // layout.bits
    place = (pixel // (h * w), pixel // w % h, pixel % w)
    c0 = at % layout.words * per
    store_word(kernel, 0, place, c0, [_value(kernel, place, c0 + e) for e in range(per)])


def _plain(kernel: CudaKernel, at: Any) -> None:
    """Element `at` of a plain NCHW output."""
    _, c, h, w = kernel.layer.shape
    tensor = kernel.layer.outputs[0][1]
    place, channel = (at // (c * h * w), at // w % h, at % w), at // (h * w) % c
    value = tirx.Cast(tensor.dtype, _value(kernel, place, channel))
    T.buffer_store(kernel.output(0), value, [plain_index(tensor, place, channel)])


def _value(kernel: CudaKernel, place: Position, channel: Any) -> Any:
    """Element of the output as int32."""
    (n, c, h, w), inside = source(kernel.layer, place[0], channel, place[1], place[2])
    inside = tirx.all(channel < kernel.layer.shape[1], *inside)
    fixed = tirx.const(constant(kernel.layer), "int32")
    return T.Bind(tirx.if_then_else(inside, load_element(kernel, 0, (n, h, w), c), fixed))
