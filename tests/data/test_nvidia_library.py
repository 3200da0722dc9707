"""NVIDIA's W4A4 ResNet-50, compiled: every recorded integer and every recorded class, exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tvm_q4
from tests.data.nvidia import (
    STORED,
    dequantized,
    normalise,
    quantized,
    read_inputs,
    same_input,
    sample_image,
    sample_images,
)
from tests.data.truncate import ending_at
from tvm_q4.frontend.recipe import read_recipe
from tvm_q4.library import Library
from tvm_q4.meta import model_meta

IN_REGISTERS = [
    f"layer{stage}.0.{tensor}"
    for stage in (3, 4)
    for tensor in ("downsample.acc", "skip", "conv3.acc")
]
"""Recorded tensors that a library never stores: the convolution's epilogue consumes them."""


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return tvm_q4.compile(folder, target="llvm", batch=2, integer_output=True)


def test_every_stored_tensor_is_equal(
    library: Library, folder: Path, reference: dict[str, NDArray]
) -> None:
    trace = library.trace(read_inputs(folder, 2))
    aliases = model_meta(read_recipe(folder))["tensor_aliases"]
    stored = {k[3:]: v for k, v in reference.items() if k.startswith(("fm.", "in."))}
    assert len(stored) == STORED
    assert {k for k in stored if aliases.get(k, k) not in trace} == set(IN_REGISTERS)
    for name in stored.keys() - set(IN_REGISTERS):
        found = trace[aliases.get(name, name)][: len(stored[name])]
        assert found.dtype == stored[name].dtype, name
        assert np.array_equal(found, stored[name]), name
    assert np.array_equal(trace["avgpool"].reshape(2, -1), reference["avgpool"][:2])
    result = trace[library.metadata["output"]["name"]]
    assert result.dtype == np.int32
    assert np.array_equal(result, reference["fc_acc"][:2])


def test_images_through_float_and_integer_inputs(
    library: Library, folder: Path, reference: dict[str, NDArray]
) -> None:
    """Recorded accumulators and classes, an odd number of images, and the scales of the logits."""
    inputs = read_inputs(folder, 5)
    accumulators = library.run(inputs)
    assert np.array_equal(accumulators, reference["fc_acc"][:5])
    assert np.array_equal(library.run(dequantized(inputs)), accumulators)
    with np.load(folder / "model.npz") as model:
        scale = model["fc.out_scale"]
    logits = library.logits(accumulators)
    assert np.array_equal(logits, accumulators.astype(np.float32) / scale.astype(np.float32))
    assert np.array_equal(logits.argmax(1), reference["top1"][:5])


def test_from_jpeg_to_class(library: Library, folder: Path, reference: dict[str, NDArray]) -> None:
    x = sample_image(folder, str(reference["image_file"][499]))
    if not same_input(quantized(x), reference["input_crc32"][499]):
        pytest.skip("this JPEG decoder gives other pixels than the reference's")
    assert np.array_equal(library.trace(x)["input"], quantized(x))
    assert np.array_equal(library.run(x)[0], reference["fc_acc"][499])


def test_engines_class_on_a_few_validation_images(library: Library, folder: Path) -> None:
    with np.load(folder / "imagenet_val127.npz") as data:
        pixels, engine = data["pixels"][:8], data["engine_top1"][:8]
    logits = library.logits(library.run(normalise(pixels)))
    assert np.array_equal(logits.argmax(1), engine)


def test_integer_only_and_under_16_megabytes(library: Library) -> None:
    assert library.path.stat().st_size < 16_000_000
    assert library.metadata["float_ops"] == []
    bits = [(x["weight_bits"], x["activation_bits"]) for x in library.metadata["layers"]]
    assert bits.count((4, 4)) == 52, "every convolution but the stem"
    assert library.metadata["memory"]["weight_bytes"] < 14_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_REGISTERS)
def test_tensors_in_registers_are_equal(
    folder: Path, reference: dict[str, NDArray], name: str
) -> None:
    """The network cut at the tensor: the same kernels up to it, and the tensor as the result."""
    mod = read_recipe(folder)
    tensor = model_meta(mod)["tensor_aliases"].get(name, name)
    library = tvm_q4.compile(ending_at(mod, tensor))
    expected = reference[f"in.{name}"]
    found = library.run(read_inputs(folder, len(expected)))
    assert found.dtype == np.int32
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_all_sample_images(library: Library, folder: Path, reference: dict[str, NDArray]) -> None:
    """Every image that this JPEG decoder reads as the reference's did; at least 400 of 500."""
    decoded = right = 0
    for i, x in sample_images(folder, reference):
        trace = library.trace(x)
        accumulators = trace[library.metadata["output"]["name"]]
        top1 = int(library.logits(accumulators)[0].argmax())
        assert np.array_equal(trace["avgpool"].ravel(), reference["avgpool"][i]), i
        assert np.array_equal(accumulators[0], reference["fc_acc"][i]), i
        assert top1 == int(reference["top1"][i]), i
        decoded += 1
        right += top1 == int(reference["label"][i])
    print(f"{decoded} of 500 images decoded as the reference's, all equal; {right} right")
    assert decoded >= 400
    if decoded == 500:
        assert right == 441


@pytest.mark.slow
def test_engines_class_on_all_validation_images(library: Library, folder: Path) -> None:
    with np.load(folder / "imagenet_val127.npz") as data:
        pixels, engine = data["pixels"], data["engine_top1"]
    found = library.logits(library.run(normalise(pixels))).argmax(1)
    assert len(found) == 127
    assert found.tolist() == engine.tolist()


@pytest.mark.slow
def test_float_logits_and_verify_at_several_batches(
    folder: Path, reference: dict[str, NDArray]
) -> None:
    with np.load(folder / "model.npz") as model:
        scale = model["fc.out_scale"].astype(np.float32)
    for batch in (1, 3, 8):
        library = tvm_q4.compile(str(folder), batch=batch)
        assert library.path.stat().st_size < 16_000_000
        report = tvm_q4.verify(library, folder)
        assert report["bit_exact"], report["first_mismatch"]
        logits = library.run(read_inputs(folder, 3))
        assert np.array_equal(logits, reference["fc_acc"][:3].astype(np.float32) / scale)
