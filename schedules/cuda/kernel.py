"""What every CUDA kernel shares: arguments, halos, and the epilogue of a thread's channels.

A thread finishes runs of consecutive channels of a few pixels (`Row`). Constants of a channel are
loaded once for all its rows; residuals are loaded and results stored 16 bytes at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.target import Target

from tvm_q4._compat import MIN_BLOCKS_ATTR, IRBuilder, T, tirx
from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import INT32_MAX
from tvm_q4.schedules.cuda import words
from tvm_q4.schedules.epilogue import emit_epilogue
from tvm_q4.schedules.kernel import channel_params
from tvm_q4.schedules.layer import Layer, Tensor
from tvm_q4.schedules.layout import WORD_BITS, round_up

CUDA_ATTR = "q4.cuda"
"""Attribute of our CUDA functions: they are lowered by `pipeline`, not by TVM's passes."""

GROUP = 16
"""Most channels that a thread finishes at once; every packed tensor holds a multiple of them."""

_VECTOR = 4  # words of the widest access: 16 bytes


@dataclass
class Row:
    """A run of channels of one pixel.

    `place` is (n, h, w), logical and always inside the tensors; results are stored where `store`
    holds (always if None). `values` are the anchor's results, int32, one a channel; a bias is added
    to them.
    """

    place: tuple[Any, Any, Any]
    values: list[Any] | None = None
    store: Any | None = None


class CudaKernel:
    """Arguments of one kernel and its shared parts; make it inside `cuda_func`.

    Parameters
    ----------
    layer : Layer
    channels : int
        Padded length of per-channel constants.
    weight_words : int, optional
        int32 words of packed weights: the argument after the inputs.
    scratch : tuple of int, optional
        Shape of an int32 scratch tensor: the argument before the outputs.
    """

    def __init__(
        self,
        layer: Layer,
        channels: int,
        weight_words: int | None = None,
        scratch: tuple[int, ...] | None = None,
    ) -> None:
        self.layer, self.channels = layer, channels
        self._inputs = [self._argument(f"x{i}", t) for i, t in enumerate(layer.inputs)]
        self._weight = self._scratch = None
        if weight_words is not None:
            self._weight = T.arg("w", T.buffer((weight_words,), "int32"))
        self._params: dict[tuple[int, str], Any] = {}
        for index, name, array in channel_params(layer, channels):
            self._params[index, name] = T.arg(
                f"{name}{index}", T.buffer(array.shape, str(array.dtype))
            )
        if scratch is not None:
            self._scratch = T.arg("scratch", T.buffer(scratch, "int32"))
        self._outputs = [self._argument(f"y{k}", t) for k, (_, t) in enumerate(layer.outputs)]

    def _argument(self, name: str, tensor: Tensor) -> Any:
        count = int(np.prod(tensor.physical_shape, dtype=np.int64))
        if count > INT32_MAX:
            msg = (
                f"layer {self.layer.name!r}: tensor {tensor.name!r} of shape {list(tensor.shape)} "
                f"has {count} elements in memory, CUDA kernels count to {INT32_MAX}; "
                "compile for a smaller batch or image"
            )
            raise UnsupportedError(msg)
        return T.arg(name, T.buffer(tensor.physical_shape, tensor.physical_dtype))

    def view(self, buffer: Any, lanes: int = 1) -> Any:
        """A flat view of an argument with vectors as elements, for the scope that it is made in.

        Vectors as elements, because TVM turns vector accesses into scalar ones where it cannot
        prove that an index is aligned.
        """
        size = int(np.prod([int(d) for d in buffer.shape], dtype=np.int64))
        dtype = str(buffer.dtype) if lanes == 1 else f"{buffer.dtype}x{lanes}"
        return T.decl_buffer((size // lanes,), dtype, data=buffer.data)

    def input(self, i: int, lanes: int = 1) -> Any:
        """Flat view of external input `i`."""
        return self.view(self._inputs[i], lanes)

    def output(self, k: int, lanes: int = 1) -> Any:
        """Flat view of output `k`."""
        return self.view(self._outputs[k], lanes)

    def weight(self, lanes: int = 1) -> Any:
        """Flat view of the packed weights."""
        return self.view(self._weight, lanes)

    def scratch(self, lanes: int = 1) -> Any:
        """Flat view of the scratch tensor."""
        return self.view(self._scratch, lanes)

    def param(self, index: int, name: str, channel: Any, place: tuple[Any, Any, Any]) -> Any:
        """One channel's constant of an operator, where it may differ by position."""
        array = self.layer.ops[index].params[name]
        buffer = self.view(self._params[index, name])
        if array.ndim != 4:
            return buffer[channel]
        position = place[1] * self.layer.shape[3] + place[2]
        return buffer[position if array.shape[1] == 1 else position * self.channels + channel]

    def quad(self, index: int, name: str, channel: Any) -> list[Any]:
        """Constants of four channels from `channel` (a multiple of 4) on, in one access."""
        vector = T.Bind(self.view(self._params[index, name], _VECTOR)[tirx.floordiv(channel, 4)])
        return [tirx.Shuffle([vector], [i]) for i in range(4)]

    def finish(self, rows: list[Row], c0: Any, width: int) -> None:
        """Run the epilogue on `width` channels from `c0` on (a multiple of `width`) of every row.

        `width` is 8 or 16, and the channels exist in every packed tensor of the layer.
        """
        loaded = [self._residuals(row, c0, width) for row in rows]
        packed = [[_Packed(t, width) for _, t in self.layer.outputs] for _ in rows]
        for q in range(0, width, 4):
            quads = self._quads(c0 + q)
            for row, residual, outs in zip(rows, loaded, packed, strict=True):
                for e in range(q, q + 4):
                    self._element(row, residual, outs, quads, c0, e)
        for row, outs in zip(rows, packed, strict=True):
            if row.store is None:
                self._store(row, outs, c0)
            else:
                with T.If(row.store), T.Then():
                    self._store(row, outs, c0)

    def _residuals(self, row: Row, c0: Any, width: int) -> dict[int, list[Any]]:
        """Elements of every external input that the epilogue reads, by input."""
        reads = {i for _, op in self.layer.epilogue for kind, i in op.refs if kind == "in"}
        return {i: self.load(i, row.place, c0, width) for i in sorted(reads)}

    def load(self, i: int, place: tuple[Any, Any, Any], c0: Any, width: int) -> list[Any]:
        """`width` channels of input `i` as int32 (float32 of a plain tensor), from `c0` on."""
        tensor = self.layer.inputs[i]
        if not tensor.layout.bits:
            flat = self.input(i)
            return [
                T.Bind(flat[plain_index(tensor, place, tirx.min(c0 + e, tensor.shape[1] - 1))])
                for e in range(width)
            ]
        assert tensor.range is not None
        bits, signed, per = tensor.layout.bits, tensor.range.signed, WORD_BITS // tensor.layout.bits
        found = self.load_words(i, place, c0, width)
        return [words.element(found[e // per], e % per, bits, signed) for e in range(width)]

    def load_words(self, i: int, place: tuple[Any, Any, Any], c0: Any, width: int) -> list[Any]:
        """Words of `width` channels of the packed input `i`, from `c0` on."""
        tensor = self.layer.inputs[i]
        count = width * tensor.layout.bits // WORD_BITS
        lanes = min(_VECTOR, count)
        start = word_index(tensor, place, c0)
        found = []
        for v in range(count // lanes):
            vector = T.Bind(self.input(i, lanes)[tirx.floordiv(start, lanes) + v])
            found += [vector] if lanes == 1 else [tirx.Shuffle([vector], [k]) for k in range(lanes)]
        return found

    def _quads(self, channel: Any) -> dict[tuple[int, str], list[Any]]:
        """Per-channel constants that the epilogue reads, for four channels."""
        return {
            (index, name): self.quad(index, name, channel)
            for index, name in self._params
            if self.layer.ops[index].params[name].ndim != 4
        }

    def _element(
        self,
        row: Row,
        residual: dict[int, list[Any]],
        outs: list[_Packed],
        quads: dict[tuple[int, str], list[Any]],
        c0: Any,
        e: int,
    ) -> None:
        def param(index: int, name: str) -> Any:
            if (index, name) in quads:
                return quads[index, name][e % 4]
            return self.param(index, name, c0 + e, row.place)

        anchor, terms = row.values[e] if row.values is not None else None, None
        if anchor is not None and "bias" in self.layer.ops[0].params:
            terms = [param(0, "bias"), T.Bind(anchor)]
            anchor = T.Bind(terms[0] + terms[1])
        free = self._unclamped(outs)
        values = emit_epilogue(
            self.layer, anchor, lambda i: residual[i][e], param, 1, unclamped=free, terms=terms
        )
        for out, (index, _) in zip(outs, self.layer.outputs, strict=True):
            out.put(e, values[index])

    def _unclamped(self, outs: list[_Packed]) -> frozenset[int]:
        """Operators whose clamp is left to the packing: their value goes nowhere else."""
        read = {i for op in self.layer.ops for kind, i in op.refs if kind == "op"}
        counts = [index for index, _ in self.layer.outputs]
        return frozenset(
            index
            for out, (index, _) in zip(outs, self.layer.outputs, strict=True)
            if out.saturates and index not in read and counts.count(index) == 1
        )

    def _store(self, row: Row, outs: list[_Packed], c0: Any) -> None:
        for k, (out, (_, tensor)) in enumerate(zip(outs, self.layer.outputs, strict=True)):
            if tensor.layout.bits:
                self._store_words(k, tensor, out, row.place, c0)
            else:
                self._store_plain(k, tensor, out, row.place, c0)

    def store_index(self, tensor: Tensor, place: tuple[Any, Any, Any], c0: Any) -> Any:
        """Flat index of the word of output `tensor` that channel `c0` of a pixel goes to."""
        return word_index(tensor, place, c0)

    def _store_words(self, k: int, tensor: Tensor, out: _Packed, place: Any, c0: Any) -> None:
        count = len(out.words)
        lanes = min(_VECTOR, count)
        start = self.store_index(tensor, place, c0)
        view = self.output(k, lanes)
        for v in range(count // lanes):
            parts = [tirx.reinterpret("int32", w) for w in out.words[v * lanes : (v + 1) * lanes]]
            value = parts[0] if lanes == 1 else tirx.Shuffle(parts, list(range(lanes)))
            T.buffer_store(view, value, [tirx.floordiv(start, lanes) + v])

    def _store_plain(self, k: int, tensor: Tensor, out: _Packed, place: Any, c0: Any) -> None:
        """Store to a plain NCHW tensor, element by element, leaving out padded channels."""
        view = self.output(k)
        for e, value in enumerate(out.values):
            with T.If(c0 + e < tensor.shape[1]), T.Then():
                T.buffer_store(
                    view,
                    tirx.Cast(tensor.dtype, value),
                    [plain_index(tensor, place, c0 + e)],
                )

    def fill_halos(self, thread: Any, threads: int) -> None:
        """Write the zero point into every output's halo; `thread` counts all of the grid's threads.

        It is done in every run, because tensors share memory.
        """
        for k, (_, tensor) in enumerate(self.layer.outputs):
            if any(tensor.layout.halo):
                self._fill_halo(k, tensor, thread, threads)

    def _fill_halo(self, k: int, tensor: Tensor, thread: Any, threads: int) -> None:
        n, height, width, pixel = tensor.physical_shape
        lanes = _VECTOR if pixel % _VECTOR == 0 else 1
        vectors, pixels = pixel // lanes, halo_pixels(tensor)
        total = n * pixels * vectors
        word = tirx.const(words.repeated(tensor.fill, tensor.layout.bits), "int32")
        value = word if lanes == 1 else tirx.Broadcast(word, lanes)
        view = self.output(k, lanes)
        with T.serial(0, -(-total // threads)) as i:
            at = T.Bind(i * threads + thread)
            with T.If(at < total), T.Then():
                image, q = T.Bind(at // (pixels * vectors)), T.Bind(at // vectors % pixels)
                y, x = _halo_place(tensor, q)
                offset = ((image * height + y) * width + x) * vectors + at % vectors
                T.buffer_store(view, value, [offset])


class _Packed:
    """One output's results of a row: packed words, or values of a plain tensor."""

    def __init__(self, tensor: Tensor, width: int) -> None:
        self.bits = tensor.layout.bits
        self.range = tensor.range
        self.values: list[Any] = []
        self.words: list[Any] = []
        self.saturates = bool(
            self.bits and self.range is not None and words.saturates(self.range, self.bits)
        )
        if self.bits:
            count = width * self.bits // WORD_BITS
            self._buffer = T.alloc_buffer((count,), "uint32", scope="local")

    def put(self, e: int, value: Any) -> None:
        """Take the value of channel `e`; channels come in order."""
        self.values.append(T.Bind(value))
        per = WORD_BITS // self.bits if self.bits else 0
        if not per or (e + 1) % per:
            return
        assert self.range is not None
        ints = [tirx.Cast("int32", v) for v in self.values[-per:]]
        words.pack(ints, self.bits, self.range.signed, self._buffer, e // per)
        self.words.append(self._buffer[e // per])


def word_index(tensor: Tensor, place: tuple[Any, Any, Any], c0: Any) -> Any:
    """Flat index of the word that holds logical channel `c0` of a pixel of a packed tensor."""
    _, height, width, pixel = tensor.physical_shape
    top, left, _, _ = tensor.layout.halo
    n, h, w = place
    row = (n * height + h + top) * width + w + left
    per = WORD_BITS // tensor.layout.bits
    return row * pixel + (tirx.floordiv(c0, per) if per > 1 else c0)


def plain_index(tensor: Tensor, place: tuple[Any, Any, Any], channel: Any) -> Any:
    """Flat index of an element of a plain NCHW tensor."""
    _, channels, height, width = tensor.shape
    n, h, w = place
    return ((n * channels + channel) * height + h) * width + w


def halo_pixels(tensor: Tensor) -> int:
    """Pixels of one image's halo."""
    _, height, width, _ = tensor.physical_shape
    return height * width - tensor.shape[2] * tensor.shape[3]


def _halo_place(tensor: Tensor, q: Any) -> tuple[Any, Any]:
    """Physical row and column of halo pixel `q`: rows above, rows below, then both sides."""
    _, _, h, w = tensor.shape
    top, left, bottom, right = tensor.layout.halo
    width = w + left + right
    above, ends = top * width, (top + bottom) * width
    y_end, x_end = q // width, q % width
    y_end = tirx.Select(q < above, y_end, y_end + h)
    if not left + right:
        return y_end, x_end
    side = tirx.max(q - ends, 0)
    y_side, s = side // (left + right) + top, side % (left + right)
    x_side = tirx.Select(s < left, s, s + w)
    if not ends:
        return y_side, x_side
    return tirx.Select(q < ends, y_end, y_side), tirx.Select(q < ends, x_end, x_side)


def constants(layer: Layer, channels: int) -> list[np.ndarray]:
    """Per-channel constant arguments of a `CudaKernel`, in order."""
    return [array for _, _, array in channel_params(layer, channels)]


def padded_channels(layer: Layer) -> int:
    """Channels that element-wise kernels work on: whole groups."""
    return round_up(layer.shape[1], GROUP)


def room_for(blocks: int) -> AbstractContextManager[Any]:
    """Make nvcc leave registers for so many blocks an SM; 0: as it likes. Inside the launch."""
    if not blocks:
        return nullcontext()
    return T.attr(tirx.const(0, "int32"), MIN_BLOCKS_ATTR, blocks)


def cuda_func(name: str, target: Target, body: Callable[[], None]) -> tirx.PrimFunc:
    """Build a PrimFunc for a CUDA target, whose body `body()` emits through the IR builder."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True, private=False):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, CUDA_ATTR: 1})
            body()
    func = builder.get().with_attr("global_symbol", name)
    return func.with_attr("target", target)
