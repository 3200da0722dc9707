"""What must hold of a library on a GPU, be it a real one or the emulated one of the tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_q4.library import Library, load
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.pipeline import to_integer
from tvm_q4.sample_input import sample_input
from tvm_q4.verification import verify


def check_library(path: Path, module: tvm.IRModule, seeds: Iterable[int] = (0,)) -> Library:
    """Require the reference executor's integers of a library, launched and as a CUDA graph.

    Parameters
    ----------
    path : Path
        The library.
    module : tvm.IRModule
        What it was compiled from.
    seeds : iterable of int
        Of the random inputs.
    """
    reference = ReferenceExecutor(to_integer(module))
    for graph in (False, True):
        library = load(path, cuda_graph=graph)
        assert library.cuda_graph == graph
        for seed in seeds:
            x = sample_input(library.metadata, library.input.batch, dtype="float32", seed=seed)
            expected = np.asarray(reference.run(x))
            check_host_arrays(library, x, expected)
            check_device_tensors(library, x, expected)
    report = verify(library, module)
    assert report["bit_exact"], report["first_mismatch"]
    return library


def check_host_arrays(library: Library, x: NDArray, expected: NDArray) -> None:
    """Floats and quantized integers from the host, and batches that are not full."""
    np.testing.assert_array_equal(library.run(x), expected, "floats")
    np.testing.assert_array_equal(library.run(x), expected, "floats again")
    np.testing.assert_array_equal(library.run(x[:1]), expected[:1], "one image")
    quantized = library.metadata["input"]["quantized"]
    if quantized is not None:
        integers = library.trace(x)[quantized["name"]]
        np.testing.assert_array_equal(library.run(integers), expected, "integers")
        np.testing.assert_array_equal(library.run(integers), expected, "integers again")


def check_device_tensors(library: Library, x: NDArray, expected: NDArray) -> None:
    """DLPack tensors on the device: one batch, several, and `out` on either side."""
    on_device = _on_device(x)
    result = library.run(on_device)
    assert result.device == on_device.device
    np.testing.assert_array_equal(result.numpy(), expected, "one batch")
    twice, both = np.concatenate([x, x[::-1]]), np.concatenate([expected, expected[::-1]])
    np.testing.assert_array_equal(library.run(_on_device(twice)).numpy(), both, "two batches")
    out, host = _on_device(np.zeros_like(expected)), np.zeros_like(expected)
    assert library.run(on_device, out=out) is out
    np.testing.assert_array_equal(out.numpy(), expected, "out on the device")
    library.run(on_device, out=host)
    np.testing.assert_array_equal(host, expected, "out on the host")


def _on_device(x: NDArray) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(x), device=tvm.cuda(0))
