"""Tracing a run: the tensors that kernels wrote, in logical layout."""

from __future__ import annotations

import numpy as np
import pytest

from tests.library import tiny
from tvm_q4.errors import LibraryError
from tvm_q4.library import load


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_stored_tensor(tiny_library, count):
    x = np.random.default_rng(0).normal(0, 3, (count, 3, 4, 5)).astype(np.float32)
    q = tiny.quantize(x)
    tensors = tiny_library.trace(x)
    assert list(tensors) == ["input", "double", "fc.dq", "output"]
    assert np.array_equal(tensors["input"], q) and tensors["input"].dtype == np.int8
    assert np.array_equal(tensors["double"], 2 * q)
    assert np.array_equal(tensors["fc.dq"], tiny.expected(q))
    assert np.array_equal(tensors["output"], tiny.expected(q))


def test_integer_input_has_no_quantize(tiny_library):
    q = np.random.default_rng(0).integers(-8, 8, (3, 3, 4, 5), dtype=np.int8)
    tensors = tiny_library.trace(q)
    assert list(tensors) == ["double", "fc.dq", "output"]
    assert np.array_equal(tensors["double"], 2 * q)


def test_tracing_ends_with_the_run(tiny_library):
    q = np.zeros((2, 3, 4, 5), np.int8)
    before = tiny_library.trace(q)
    assert np.array_equal(tiny_library.run(q + np.int8(1)), tiny.expected(q + np.int8(1)))
    assert np.array_equal(before["double"], q)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda calls: calls[::-1], "call 0 of the library is 'quantize_input'"),
        (lambda calls: calls[:1] + calls[2:], "fc.dq"),
        (lambda calls: [*calls, calls[-1]], "'head' of the metadata was never called"),
        (lambda calls: [*calls[:-1], _shape(calls[-1], [2, 7])], "physical shape"),
        (lambda calls: [*calls[:-1], _layout(calls[-1], "NCHW16c")], "'NCHW16c' is unknown"),
    ],
)
def test_metadata_that_does_not_fit_the_code(tmp_path, change, words):
    path = tiny.write(tmp_path / "a.so", calls=change(tiny.metadata()["calls"]))
    library = load(path)
    q = np.zeros((2, 3, 4, 5), np.float32)
    if words == "fc.dq":  # a kernel that the metadata does not list is not traced
        assert list(library.trace(q)) == ["input", "fc.dq", "output"]
        return
    with pytest.raises(LibraryError, match=words.replace("[", r"\[")):
        library.trace(q)


def _shape(call: dict, shape: list[int]) -> dict:
    return call | {"outputs": [call["outputs"][0] | {"shape": shape}]}


def _layout(call: dict, kind: str) -> dict:
    return call | {"outputs": [call["outputs"][0] | {"layout": {"kind": kind}}]}
