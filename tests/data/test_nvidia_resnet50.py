"""NVIDIA's W4A4 ResNet-50 through the recipe frontend and the reference executor.

Expected values: ``reference.npz`` and the recorded answers of NVIDIA's own engine
(``imagenet_val127.npz``); see the data folder's README.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

from tvm_q4.frontend.recipe import read_recipe, write_recipe
from tvm_q4.frontend.recipe_export import export_document
from tvm_q4.meta import model_meta
from tvm_q4.reference import ReferenceExecutor

F32 = np.float32
MEAN, STD = np.array([0.485, 0.456, 0.406], F32), np.array([0.229, 0.224, 0.225], F32)


@pytest.fixture(scope="module")
def folder(data_dir: Callable[..., Path]) -> Path:
    return data_dir("nvidia-resnet50-w4a4")


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, NDArray]:
    with np.load(folder / "reference.npz") as data:
        return dict(data)


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(p / 255 - mean) / std in float32; [N, H, W, C] to [N, C, H, W]."""
    x = (pixels.astype(F32) / F32(255) - MEAN) / STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def sample_image(folder: Path, name: str) -> NDArray[np.float32]:
    """One image of the sample, centre 224x224, normalised."""
    image = pytest.importorskip("PIL.Image")
    path = next((folder.parent / "imagenet-sample").rglob(name))
    pixels = np.asarray(image.open(path).convert("RGB"))[16:240, 16:240]
    return normalise(pixels[None])


def dequantized(inputs: NDArray[np.int8]) -> NDArray[np.float32]:
    """Floats that the input quantizer brings back to `inputs`."""
    return inputs.astype(F32) * F32(2.64) / F32(127)


def test_every_stored_tensor_is_equal(folder: Path, reference: dict[str, NDArray]) -> None:
    mod = read_recipe(folder, batch=2)
    aliases = model_meta(mod)["tensor_aliases"]
    with np.load(folder / "inputs32.npz") as data:
        inputs = data["input"][:2]
    trace = ReferenceExecutor(mod).trace(dequantized(inputs))
    assert np.array_equal(trace["input"], inputs)
    stored = [k for k in reference if k.startswith(("fm.", "in."))]
    assert len(stored) == 30
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
        trace = executor.trace(sample_image(folder, str(reference["image_file"][i])))
        if (
            zlib.crc32(np.ascontiguousarray(trace["input"]).tobytes())
            != reference["input_crc32"][i]
        ):
            pytest.skip("this JPEG decoder gives other pixels than the reference's")
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
    for i, name in enumerate(reference["image_file"]):
        trace = executor.trace(sample_image(folder, str(name)))
        if (
            zlib.crc32(np.ascontiguousarray(trace["input"]).tobytes())
            != reference["input_crc32"][i]
        ):
            continue
        decoded += 1
        assert np.array_equal(trace["avgpool"].ravel(), reference["avgpool"][i]), name
        assert np.array_equal(trace["fc"][0], reference["fc_acc"][i]), name
        assert int(trace["logits"].argmax()) == int(reference["top1"][i]), name
        right += int(reference["top1"][i]) == int(reference["label"][i])
    if decoded < 500:
        pytest.skip(
            f"this JPEG decoder gives the reference's pixels for {decoded} images only; all equal"
        )
    assert right == 441
