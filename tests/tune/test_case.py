"""The check that decides what may be recorded as bit-exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax

from tests import small_network
from tests.schedules.builders import U8, module, requantized, weights
from tests.tune import fakes
from tvm_q4 import ops
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.layouts import to_logical
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.relay_passes.pipeline import to_fused, to_integer
from tvm_q4.schedules.layer import Layer
from tvm_q4.tune.case import Case, make_case
from tvm_q4.tune.task import extract_tasks
from tvm_q4.variants import variants

TARGETS = [fakes.CPU, CudaTarget((80,))]


def cases(target) -> list[tuple[Layer, Case]]:
    """Layers of a network with a residual, 4 and 8 bits and float logits, and their cases."""
    fused = to_fused(to_integer(small_network.quantized()))
    tasks = extract_tasks(fused, variants(target))
    return [(t.layer, make_case(t.fused, t.layer, seed=3)) for t in tasks]


@pytest.mark.parametrize("target", TARGETS, ids=["cpu", "cuda"])
def test_arrays_lie_in_memory_as_the_layer_says(target) -> None:
    for layer, case in cases(target):
        for tensors, arrays in (
            (layer.inputs, case.inputs),
            ([t for _, t in layer.outputs], case.outputs),
        ):
            for tensor, array in zip(tensors, arrays, strict=True):
                assert array.shape == tensor.physical_shape
                assert array.dtype == tensor.physical_dtype
        assert [m.shape for m in case.masks] == [y.shape for y in case.outputs]
        assert case.matches([y.copy() for y in case.outputs])


@pytest.mark.parametrize("target", TARGETS, ids=["cpu", "cuda"])
def test_inputs_reach_both_ends_of_their_range(target) -> None:
    for layer, case in cases(target):
        for tensor, array in zip(layer.inputs, case.inputs, strict=True):
            assert tensor.range is not None
            layout = tensor.layout.to_json() | {"dtype": tensor.range.dtype}
            values = to_logical(array, tensor.shape[: tensor.rank], layout)
            assert (values.min(), values.max()) == (tensor.range.lo, tensor.range.hi)


@pytest.mark.parametrize("target", TARGETS, ids=["cpu", "cuda"])
def test_every_defined_bit_counts_and_no_other(target) -> None:
    rng = np.random.default_rng(0)
    for _, case in cases(target):
        for k, (expected, mask) in enumerate(zip(case.outputs, case.masks, strict=True)):
            if expected.dtype.kind == "f":
                assert not case.matches(_changed(case, k, expected + 1))
                continue
            places = rng.integers(0, expected.size, 50)
            for place in places:
                for bit in range(expected.dtype.itemsize * 8):
                    flip = np.zeros_like(expected).reshape(-1)
                    word = np.array([1 << bit], np.uint32).view(np.uint8)
                    flip[place] = word[: expected.dtype.itemsize].view(expected.dtype)[0]
                    flip = flip.reshape(expected.shape)
                    defined = bool((flip & mask).any())
                    assert case.matches(_changed(case, k, expected ^ flip)) is not defined


@pytest.mark.parametrize("target", TARGETS, ids=["cpu", "cuda"])
def test_halos_count_and_padded_channels_do_not(target) -> None:
    rng = np.random.default_rng(1)

    def emit(b, x):
        for name in ("a", "b"):
            w = weights(rng, 8, (20, 20, 3, 3))
            acc = b.emit(ops.conv2d(x, w, [0], name=name, strides=[1, 1], padding=[1] * 4))
            x = requantized(b, acc, rng, name=f"{name}.out")
        return x

    fused = FuseEpilogue(module((1, 20, 5, 6), U8, emit))
    task = extract_tasks(fused, variants(target))[0]
    layer, case = task.layer, make_case(task.fused, task.layer)
    (y,), (mask,) = case.outputs, case.masks
    assert layer.outputs[0][1].layout.halo == (1, 1, 1, 1)
    bytes_of = {name: a.view(np.uint8).reshape(1, 7, 8, -1) for name, a in (("y", y), ("m", mask))}
    assert bytes_of["m"].shape[3] == 32
    assert (bytes_of["m"][:, 1:-1, 1:-1, :20] == 255).all()
    assert not bytes_of["m"][:, 1:-1, 1:-1, 20:].any()
    outside = np.ones((7, 8), bool)
    outside[1:-1, 1:-1] = False
    assert (bytes_of["m"][0, outside] == 255).all() and not bytes_of["y"][0, outside].any()


@pytest.mark.parametrize("target", TARGETS, ids=["cpu", "cuda"])
def test_a_linear_layer_may_read_a_tensor_that_was_flattened(target) -> None:
    rng = np.random.default_rng(2)

    def emit(b, x):
        pool = {"pool_size": [2, 3], "strides": [1, 1], "padding": [0] * 4}
        y = requantized(b, b.emit(ops.avg_pool2d(x, name="pool", **pool)), rng, name="pool.out")
        flat = b.emit(relax.op.reshape(y, (5, 20)))
        return b.emit(ops.dense(flat, weights(rng, 8, (40, 20)), [0], name="fc"))

    fused = FuseEpilogue(module((5, 20, 2, 3), U8, emit))
    task = next(t for t in extract_tasks(fused, variants(target)) if t.layer.kind == "dense")
    assert task.layer.inputs[0].rank == 4
    case = make_case(task.fused, task.layer)
    assert case.outputs[0].size >= 5 * 40 and case.matches([y.copy() for y in case.outputs])


def test_a_case_survives_its_file(tmp_path: Path) -> None:
    for number, (_, case) in enumerate(cases(fakes.CPU)):
        path = tmp_path / f"{number}.npz"
        case.save(path)
        loaded = Case.load(path)
        for one, other in ((case.inputs, loaded.inputs), (case.outputs, loaded.outputs)):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
        assert loaded.matches(case.outputs)


def _changed(case: Case, index: int, output: NDArray) -> list[NDArray]:
    return [output if i == index else y for i, y in enumerate(case.outputs)]
