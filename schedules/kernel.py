"""What every kernel shares: its arguments, per-channel constants, halos, epilogue and stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tvm_q4._compat import IRBuilder, T, tirx
from tvm_q4.schedules import lanes
from tvm_q4.schedules.epilogue import emit_epilogue
from tvm_q4.schedules.high_word import LOWEST_SHIFT
from tvm_q4.schedules.layer import Layer, Tensor
from tvm_q4.schedules.layout import LANES, round_up

KERNEL_ATTR = "q4.kernel"
"""Attribute of our kernels: they take tensors that start at an offset of their storage."""

_NEUTRAL = {"shift": 1, "lhs_shift": 1, "rhs_shift": 1}


def channel_params(layer: Layer, channels: int | None = None) -> list[tuple[int, str, np.ndarray]]:
    """Constants of a layer's operators as a kernel takes them, in argument order.

    Per-channel arrays are padded to `channels`, or the vector width (a padded channel multiplies
    by 0); arrays that differ by position are flat [H * W], or [H * W * channels] where they differ
    by channel too. The anchor's weight is not among them.
    """
    channels = channels or round_up(layer.shape[1], LANES)
    out = []
    for index, op in enumerate(layer.ops):
        for name, value in op.params.items():
            if name == "weight" or (op.kind in ("dequantize", "quantize") and name == "zero_point"):
                continue
            dtype = np.float32 if name == "scale" else np.int32
            if value.ndim == 4:
                out.append((index, name, _positional(value, channels, dtype, name)))
                continue
            neutral = _NEUTRAL.get(name, 0)
            if op.high is not None and name.endswith("shift"):
                neutral = LOWEST_SHIFT
            full = np.full(channels, neutral, dtype)
            full[: layer.shape[1]] = np.broadcast_to(value.ravel(), (layer.shape[1],))
            if op.kind == "quantize" and op.attrs["form"] == "reciprocal":
                full[: layer.shape[1]] = np.float32(1.0 / value.ravel())
            if name == "scale" and op.attrs.get("form") == "divide":
                full[layer.shape[1] :] = 1
            out.append((index, name, full))
    return out


def _positional(value: np.ndarray, channels: int, dtype: type, name: str) -> np.ndarray:
    _, c, h, w = value.shape
    if c == 1:
        return np.ascontiguousarray(value.reshape(-1), dtype)
    full = np.full((h, w, channels), _NEUTRAL.get(name, 0), dtype)
    full[:, :, :c] = value[0].transpose(1, 2, 0)
    return full.reshape(-1)


class Kernel:
    """Emits one kernel's shared parts; make it inside `prim_func`."""

    def __init__(self, layer: Layer, weight: np.ndarray | None = None) -> None:
        self.layer = layer
        self.inputs = [self._argument(f"x{i}", t) for i, t in enumerate(layer.inputs)]
        self.weight = None
        if weight is not None:
            self.weight = T.arg("w", T.buffer(weight.shape, str(weight.dtype)))
        self._params: dict[tuple[int, str], Any] = {}
        self._channels = round_up(layer.shape[1], LANES)
        for index, name, array in channel_params(layer):
            self._params[index, name] = T.arg(
                f"{name}{index}", T.buffer(array.shape, str(array.dtype))
            )
        self.outputs = [self._argument(f"y{k}", t) for k, (_, t) in enumerate(layer.outputs)]

    @staticmethod
    def _argument(name: str, tensor: Tensor) -> Any:
        # An arena tensor starts at an offset of its storage: a buffer must be declared to take it.
        return T.arg(name, T.buffer(tensor.physical_shape, tensor.dtype, offset_factor=1))

    def param(self, index: int, name: str, c0: Any, position: Any = 0) -> Any:
        """Vector of an operator's constant at channels from `c0` on (or at flat `position`)."""
        buffer, array = self._params[index, name], self.layer.ops[index].params[name]
        if array.ndim != 4:
            return lanes.load(buffer, [c0])
        if array.shape[1] == 1:
            return tirx.Broadcast(buffer[position], LANES)
        return lanes.load(buffer, [position * self._channels + c0])

    def scalar(self, index: int, name: str, channel: int) -> Any:
        """One channel's constant."""
        return self._params[index, name][channel]

    def pixel(self, i: int, n: Any, h: Any, w: Any, c: Any) -> list[Any]:
        """Index of logical element (n, c, h, w) in external input `i`."""
        top, left, _, _ = self.layer.inputs[i].layout.halo
        return [n, h + top, w + left, c]

    def finish(self, anchor: Any, n: Any, h: Any, w: Any, c0: Any) -> None:
        """Run the epilogue on one vector of channels and store every output there."""
        width = self.layer.shape[3]
        values = emit_epilogue(
            self.layer,
            anchor,
            lambda i: lanes.load(self.inputs[i], self.pixel(i, n, h, w, c0)),
            lambda index, name: self.param(index, name, c0, h * width + w),
        )
        for buffer, (index, tensor) in zip(self.outputs, self.layer.outputs, strict=True):
            if tensor.layout.kind == "NHWC":
                top, left, _, _ = tensor.layout.halo
                lanes.store(buffer, [n, h + top, w + left, c0], values[index])
            else:
                self._store_plain(buffer, tensor, values[index], n, h, w, c0)

    def _store_plain(
        self, buffer: Any, tensor: Tensor, value: Any, n: Any, h: Any, w: Any, c0: Any
    ) -> None:
        """Store to a plain NCHW tensor, element by element, leaving out padded channels."""
        tile = T.alloc_buffer((LANES,), tensor.dtype, scope="local")
        lanes.store(tile, [0], value)
        for i in range(LANES):
            with T.If(c0 + i < tensor.shape[1]):
                with T.Then():
                    T.buffer_store(buffer, tile[i], [n, c0 + i, h, w][: tensor.rank])

    def fill_halos(self) -> None:
        """Write the zero point into every output's halo, once a call: the arena is shared."""
        for buffer, (_, tensor) in zip(self.outputs, self.layer.outputs, strict=True):
            if any(tensor.layout.halo):
                _fill_halo(buffer, tensor)


def _fill_halo(buffer: Any, tensor: Tensor) -> None:
    n, height, width, channels = tensor.physical_shape
    top, left, bottom, right = tensor.layout.halo
    step = LANES if channels % LANES == 0 else channels

    def block(rows: tuple[int, int], cols: tuple[int, int]) -> None:
        if rows[0] >= rows[1] or cols[0] >= cols[1]:
            return
        with T.grid(n, rows[1] - rows[0], cols[1] - cols[0], channels // step) as (i, h, w, c):
            vector = lanes.splat(tensor.fill, tensor.dtype, step)
            lanes.store(buffer, [i, h + rows[0], w + cols[0], c * step], vector, step)

    block((0, top), (0, width))
    block((height - bottom, height), (0, width))
    block((top, height - bottom), (0, left))
    block((top, height - bottom), (width - right, width))


@contextmanager
def _named(name: str) -> Iterator[None]:
    with T.prim_func(s_tir=True, private=False):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, KERNEL_ATTR: 1})
        yield


def prim_func(name: str, body: Callable[[], None]) -> tirx.PrimFunc:
    """Build a PrimFunc whose body `body()` emits through the IR builder."""
    with IRBuilder() as builder, _named(name):
        body()
    return builder.get().with_attr("global_symbol", name)
