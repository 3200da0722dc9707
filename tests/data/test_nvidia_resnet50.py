"""NVIDIA's W4A4 ResNet-50 through the recipe frontend and the reference executor.

Expected values: ``reference.npz`` and the recorded answers of NVIDIA's own engine
(``imagenet_val127.npz``); see the data folder's README.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

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
from tvm_q4.frontend.recipe import read_recipe, write_recipe
from tvm_q4.frontend.recipe_export import export_document
from tvm_q4.meta import model_meta
from tvm_q4.reference import ReferenceExecutor


def test_every_stored_tensor_is_equal(folder: Path, reference: dict[str, NDArray]) -> None:
    mod = read_recipe(folder, batch=2)
    aliases = model_meta(mod)["tensor_aliases"]
    inputs = read_inputs(folder, 2)
    trace = ReferenceExecutor(mod).trace(dequantized(inputs))
    assert np.array_equal(trace["input"], inputs)
    stored = [k for k in reference if k.startswith(("fm.", "in."))]
    assert len(stored) == STORED
    for key in stored:
        name = key[3:]
        found = trace[aliases.get(name, name)][: len(reference[key])]
        assert found.dtype == reference[key].dtype, key
        assert np.array_equal(found, reference[key]), key
    assert np.array_equal(trace["avgpool"].reshape(2, -1), reference["avgpool"][:2])
    assert np.array_equal(trace["fc"], reference["fc_acc"][:2])
    assert np.array_equal(trace["logits"].argmax(1), reference["top1"][:2])


def test_image_to_input_is_nvidias(folder: Path, reference: dict[str, NDArray]) -> None:
    """The input quantizer alone, from decoded JPEGs; skipped where the decoder differs."""
    executor = ReferenceExecutor(read_recipe(folder))
    for i in (0, 250, 499):
        x = sample_image(folder, str(reference["image_file"][i]))
        if not same_input(quantized(x), reference["input_crc32"][i]):
            pytest.skip("this JPEG decoder gives other pixels than the reference's")
        trace = executor.trace(x)
        assert np.array_equal(trace["input"], quantized(x))
        assert np.array_equal(trace["fc"][0], reference["fc_acc"][i])
        assert int(trace["logits"].argmax()) == int(reference["top1"][i])


def test_export_and_import_is_the_identity(folder: Path, tmp_path: Path) -> None:
    mod = read_recipe(folder)
    write_recipe(mod, tmp_path / "recipe")
    tvm.ir.assert_structural_equal(read_recipe(tmp_path / "recipe"), mod)
    document, arrays = export_document(read_recipe(tmp_path / "recipe", batch=3))
    expected, expected_arrays = export_document(mod)
    assert document == expected
    assert arrays.keys() == expected_arrays.keys()
    assert all(np.array_equal(arrays[k], expected_arrays[k]) for k in arrays)


def test_engines_class_on_a_few_validation_images(folder: Path) -> None:
    with np.load(folder / "imagenet_val127.npz") as data:
        pixels, engine = data["pixels"][:2], data["engine_top1"][:2]
    logits = ReferenceExecutor(read_recipe(folder, batch=2)).run(normalise(pixels))
    assert np.array_equal(logits.argmax(1), engine)


@pytest.mark.slow
def test_engines_class_on_all_validation_images(folder: Path) -> None:
    with np.load(folder / "imagenet_val127.npz") as data:
        pixels, engine = data["pixels"], data["engine_top1"]
    executor = ReferenceExecutor(read_recipe(folder))
    found = [int(executor.run(normalise(p[None])).argmax()) for p in pixels]
    assert len(found) == 127
    assert found == engine.tolist()


@pytest.mark.slow
def test_all_sample_images(folder: Path, reference: dict[str, NDArray]) -> None:
    """Images whose decoded pixels are the reference's: every accumulator and class is equal."""
    executor = ReferenceExecutor(read_recipe(folder))
    decoded = right = 0
    for i, x in sample_images(folder, reference):
        trace = executor.trace(x)
        assert np.array_equal(trace["avgpool"].ravel(), reference["avgpool"][i]), i
        assert np.array_equal(trace["fc"][0], reference["fc_acc"][i]), i
        assert int(trace["logits"].argmax()) == int(reference["top1"][i]), i
        decoded += 1
        right += int(reference["top1"][i]) == int(reference["label"][i])
    assert decoded >= 400, f"only {decoded} images decode to the reference's pixels here"
    if decoded == 500:
        assert right == 441
