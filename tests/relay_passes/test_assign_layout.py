"""AssignLayout: channels and halos that the readers of a tensor ask for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.modules import module
from tvm_q4 import ops
from tvm_q4.errors import UnsupportedError
from tvm_q4.relay_passes._rewrite import dataflow_bindings
from tvm_q4.relay_passes.assign_layout import Placement, assign_layouts
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.schedules.layout import Layout

Emit = Callable[[relax.BlockBuilder, relax.Var], relax.Expr]


def _conv(b, x, name, out=16, kernel=1, padding=(0, 0, 0, 0), zero=0, bits=8, groups=1):
    w = np.ones((out, int(x.ty.shape[1]) // groups, kernel, kernel), np.int8)
    how = {"padding": padding, "zero_point": zero, "weight_bits": bits, "groups": groups}
    return b.emit(ops.conv2d(x, w, [0], name=name, strides=[1, 1], **how))


def _narrow(b, x, name):
    return b.emit(ops.requantize(x, [1], [4], name=name, lo=0, hi=255, dtype="uint8"))


def _quantize(b, x):
    return b.emit(ops.quantize(x, 0.1, 0, name="q", qmin=0, qmax=255, dtype="uint8"))


def _placements(mod: tvm.IRModule) -> dict[str, Placement]:
    """Placement by the name of the tensor, as the callee's last q4 operator names it."""
    fused = FuseEpilogue(mod)
    found = assign_layouts(fused)
    out = {"x": found[fused["main"].params[0]]} if fused["main"].params[0] in found else {}
    for b in dataflow_bindings(fused["main"]):
        if isinstance(b.value, relax.Call) and isinstance(b.value.op, tvm.ir.GlobalVar):
            calls = [c.value for c in dataflow_bindings(fused[b.value.op]) if ops.is_q4(c.value)]
            if b.var in found:
                out[str(calls[-1].attrs["name"])] = found[b.var]
    return out


def _of(emit: Emit, shape=(1, 3, 8, 8), dtype="float32") -> dict[str, Placement]:
    return _placements(module(shape, dtype, emit))


def test_images_of_few_channels_keep_them() -> None:
    for channels, physical in ((1, 4), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16)):
        found = _of(lambda b, x: _conv(b, _quantize(b, x), "c"), (1, channels, 8, 8))
        assert found["q"] == Placement(Layout("NHWC", channels=physical))


@pytest.mark.parametrize("how", [{"bits": 4}, {"groups": 3, "out": 3}])
def test_other_convolutions_ask_for_whole_vectors(how: dict[str, int]) -> None:
    found = _of(lambda b, x: _conv(b, _quantize(b, x), "c", **how))
    assert found["q"].layout.channels == 16


def test_every_other_reader_asks_for_whole_vectors() -> None:
    def pooled(b, x):
        q = _quantize(b, x)
        p = b.emit(ops.max_pool2d(q, name="p", pool_size=[1, 1], strides=[1, 1], padding=[0] * 4))
        return b.emit(ops.concat([_narrow(b, _conv(b, q, "c", 3), "c.out"), p], name="joined"))

    def added(b, x):
        q = _quantize(b, x)
        how = {"form": "two_sided", "lo": 0, "hi": 255, "dtype": "uint8"}
        acc = _conv(b, q, "c", 3)
        return b.emit(ops.add(acc, q, [1], [0], [1], [0], name="sum", **how))

    def moved(b, x):
        q = _quantize(b, x)
        return _conv(b, b.emit(relax.op.strided_slice(q, [2], [0], [8], [2])), "c")

    for emit in (pooled, added, moved):
        assert _of(emit)["q"].layout.channels == 16


def test_layers_make_whole_vectors() -> None:
    found = _of(lambda b, x: _conv(b, _narrow(b, _conv(b, x, "a", 3), "y"), "c"), dtype="uint8")
    assert found["y"].layout == Layout("NHWC", channels=16)
    assert found["x"].layout == Layout("NHWC", channels=4)
    assert found["c"].layout == Layout("NHWC", channels=16)


def test_halo_is_the_widest_padding_of_each_side() -> None:
    def emit(b, x):
        y = _narrow(b, x, "y")
        one = _conv(b, y, "c1", 16, 3, (1, 0, 1, 2), zero=7)
        two = _conv(b, y, "c2", 16, 3, (0, 2, 1, 0), zero=7)
        three = _conv(b, y, "c3")  # no padding: its zero point is not asked for
        parts = [_narrow(b, t, f"p{i}") for i, t in enumerate((one, two, three))]
        pools = [
            b.emit(
                ops.max_pool2d(p, name=f"m{i}", pool_size=[2, 2], strides=[9, 9], padding=[0] * 4)
            )
            for i, p in enumerate(parts)
        ]
        return b.emit(ops.concat(pools, name="joined"))

    found = _of(emit, (1, 16, 8, 8), "uint8")
    assert found["y"] == Placement(Layout("NHWC", (1, 2, 1, 2), 16), 7)
    assert found["m0"] == Placement(Layout("NHWC", channels=16), 0)


def test_two_fills_for_one_halo_are_an_error() -> None:
    def emit(b, x):
        y = _narrow(b, x, "y")
        one = _conv(b, y, "c1", 16, 3, (1, 1, 1, 1), zero=7)
        two = _conv(b, y, "c2", 16, 3, (1, 1, 1, 1), zero=8)
        how = {"form": "two_sided", "lo": 0, "hi": 255, "dtype": "uint8"}
        return b.emit(ops.add(one, two, [1], [0], [1], [0], name="sum", **how))

    with pytest.raises(UnsupportedError, match=r"padded with \[7, 8\] by different convolutions"):
        _of(emit, (1, 16, 8, 8), "uint8")


def test_float_tensors_have_no_placement() -> None:
    def emit(b, x):
        real = b.emit(ops.dequantize(_quantize(b, x), 0.1, 0, name="d", qmin=0, qmax=255))
        return b.emit(relax.op.nn.relu(real))

    fused = FuseEpilogue(module((1, 3, 8, 8), "float32", emit))
    assert [v.ty.dtype for v in assign_layouts(fused)] == ["uint8"]


def test_features_are_single_positions() -> None:
    found = _of(lambda b, x: _narrow(b, x, "y"), (5, 21), "uint8")
    assert found["y"].layout.physical_shape((5, 21)) == (5, 1, 1, 32)
