"""A model's digest: the same for the same arithmetic, whatever the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tests.modules import module
from tvm_q4 import ops
from tvm_q4.meta import with_meta
from tvm_q4.model_hash import model_hash

W = np.arange(-32, 32).reshape(4, 4, 2, 2)


def _model(batch: int = 1, size: int = 6, w: np.ndarray = W, **change: Any) -> tvm.IRModule:
    a = {"strides": [1, 1], "padding": [0] * 4} | change.get("conv", {})
    r = {"lo": 0, "hi": 255, "dtype": "uint8"} | change.get("requantize", {})

    def emit(b, x):
        acc = b.emit(ops.conv2d(x, w, change.get("bias", [1]), name="c", **a))
        y = b.emit(ops.requantize(acc, change.get("m", [3]), [7], name="y", **r))
        step = change.get("step", 2)
        small = b.emit(relax.op.strided_slice(y, [2, 3], [0, 0], list(y.ty.shape)[2:], [step] * 2))
        real = b.emit(ops.dequantize(small, 0.5, 0, name="d", qmin=0, qmax=255))
        return b.emit(relax.op.nn.max_pool2d(real, change.get("pool", (1, 1))))

    return module((batch, 4, size, size), "uint8", emit)


def test_the_same_model_has_the_same_hash() -> None:
    assert model_hash(_model()) == model_hash(_model())
    assert len(model_hash(_model())) == 64


def test_batch_and_image_size_do_not_enter() -> None:
    assert len({model_hash(_model(n, s)) for n, s in ((1, 6), (3, 6), (1, 8), (2, 9))}) == 1


def test_facts_do_not_enter() -> None:
    assert model_hash(with_meta(_model(), name="net")) == model_hash(_model())


def test_everything_that_is_computed_enters() -> None:
    other = W.copy()
    other[3, 3, 1, 1] += 1
    models = [
        _model(),
        _model(w=other),
        _model(bias=[2]),
        _model(m=[4]),
        _model(conv={"strides": [2, 2]}),
        _model(conv={"zero_point": 3}),
        _model(conv={"weight_bits": 4}),
        _model(requantize={"hi": 15}),
        _model(requantize={"rounding": "floor"}),
        _model(step=1),
        _model(pool=(2, 2)),
    ]
    assert len({model_hash(m) for m in models}) == len(models)


def test_order_of_operands_enters() -> None:
    def emit(swap: bool):
        def build(b, x):
            y = b.emit(ops.requantize(x, [1], [1], name="y", lo=0, hi=255, dtype="uint8"))
            return b.emit(ops.concat([y, x] if swap else [x, y], name="joined"))

        return build

    one, two = (module((1, 4, 2, 2), "uint8", emit(swap)) for swap in (False, True))
    assert model_hash(one) != model_hash(two)


def test_shapes_of_constants_enter() -> None:
    def model(shape: tuple[int, ...]) -> tvm.IRModule:
        m = np.ones(shape, np.int32)
        return module(
            (1, 4, 2, 2),
            "uint8",
            lambda b, x: b.emit(ops.requantize(x, m, [0], name="y", lo=0, hi=255, dtype="uint8")),
        )

    assert model_hash(model((4,))) != model_hash(model((1, 1, 2, 2)))
