"""Single elements and words of tensors, for kernels whose channels do not come in whole groups."""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cuda import words
from tvm_q4.schedules.cuda.kernel import CudaKernel, plain_index, word_index
from tvm_q4.schedules.layout import WORD_BITS

Position = tuple[Any, Any, Any]


def load_element(kernel: CudaKernel, i: int, place: Position, channel: Any) -> Any:
    """Element of input `i` at any channel of the pixel (n, h, w), as int32."""
    tensor = kernel.layer.inputs[i]
    if not tensor.layout.bits:
        return tirx.Cast("int32", kernel.input(i)[plain_index(tensor, place, channel)])
    assert tensor.range is not None
    bits = tensor.layout.bits
    word = kernel.input(i)[word_index(tensor, place, channel)]
    return words.element(word, tirx.floormod(channel, WORD_BITS // bits), bits, tensor.range.signed)


def store_word(
    kernel: CudaKernel, k: int, place: Position, channel: Any, values: list[Any]
) -> None:
    """Store a word of output `k`: int32 values of the channels from `channel` on."""
    tensor = kernel.layer.outputs[k][1]
    assert tensor.range is not None
    word = T.alloc_buffer((1,), "uint32", scope="local")
    words.pack(values, tensor.layout.bits, tensor.range.signed, word, 0)
    index = word_index(tensor, place, channel)
    T.buffer_store(kernel.output(k), tirx.reinterpret("int32", word[0]), [index])
