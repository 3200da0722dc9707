"""Transforms: normalisation to the bit, resizing as torchvision and Pillow do it."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from PIL import Image

from tvm_q4.errors import InputError
from tvm_q4.transforms import TRANSFORMS, find_transform

IMAGENET, CIFAR10 = TRANSFORMS["imagenet"], TRANSFORMS["cifar10"]


def _image(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _normalised(pixels: np.ndarray) -> np.ndarray:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    planes = [
        (pixels[..., c].astype(np.float32) / np.float32(255) - np.float32(mean[c]))
        / np.float32(std[c])
        for c in range(3)
    ]
    return np.stack(planes)


@pytest.mark.parametrize("size", [(224, 224), (61, 45), (1, 1)])
def test_image_of_the_networks_size_is_only_normalised(size):
    image = _image(*size)
    x = IMAGENET(image, size)
    assert x.dtype == np.float32 and x.flags.c_contiguous
    assert np.array_equal(x, _normalised(image))


def test_256_is_only_cropped():
    image = _image(256, 256)
    assert np.array_equal(IMAGENET(image, (224, 224)), _normalised(image[16:240, 16:240]))


@pytest.mark.parametrize(
    ("source", "resized", "top", "left"),
    [
        ((300, 500), (256, 426), 16, 101),  # int(256 * 500 / 300) = 426
        ((500, 300), (426, 256), 101, 16),
        ((100, 100), (256, 256), 16, 16),
        ((256, 301), (256, 301), 16, 38),  # (301 - 224) / 2 = 38.5, to even
    ],
)
def test_short_side_256_then_centre(source, resized, top, left):
    image = _image(*source)
    scaled = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR)
    crop = np.asarray(scaled)[top : top + 224, left : left + 224]
    assert np.array_equal(IMAGENET(image, (224, 224)), _normalised(crop))


@pytest.mark.slow
def test_torchvision_gives_the_same():
    pytest.importorskip("torch")
    from tvm_q4.frontend.zoo import torchvision_models

    torchvision_models()
    functional = importlib.import_module("torchvision.transforms.functional")
    for source in [(300, 500), (333, 257), (480, 640)]:
        image = Image.fromarray(_image(*source))
        expected = np.asarray(functional.center_crop(functional.resize(image, 256), 224))
        assert np.array_equal(IMAGENET(np.asarray(image), (224, 224)), _normalised(expected))


def test_other_sizes_scale_along():
    image = _image(64, 64)
    scaled = Image.fromarray(image).resize((37, 37), Image.Resampling.BILINEAR)
    # round(32 * 256 / 224) = 37; (37 - 32) / 2 = 2.5, to even
    assert np.array_equal(IMAGENET(image, (32, 32)), _normalised(np.asarray(scaled)[2:34, 2:34]))


@pytest.mark.parametrize("size", [(61, 45), (45, 61), (224, 100)])
@pytest.mark.parametrize("source", [(10, 400), (400, 10), (64, 64), (100, 101)])
def test_any_shape_fits(source, size):
    assert IMAGENET(_image(*source), size).shape == (3, *size)


def test_cifar10_does_not_resize():
    assert CIFAR10(_image(32, 32), (32, 32)).shape == (3, 32, 32)
    with pytest.raises(InputError, match=r"33x32.*does not resize.*32x32"):
        CIFAR10(_image(33, 32), (32, 32))


def test_channels_must_agree():
    with pytest.raises(InputError, match=r"1 channel.*'cifar10' is for 3"):
        CIFAR10(_image(32, 32, 1), (32, 32))


def test_grey_images():
    grey = find_transform('{"mean": [0.131], "std": [0.308], "resize": 1.25}')
    image = _image(20, 20, 1)
    pixels = np.asarray(Image.fromarray(image[..., 0]).resize((10, 10), Image.Resampling.BILINEAR))
    inner = pixels[1:9, 1:9].astype(np.float32) / np.float32(255)
    expected = (inner - np.float32(0.131)) / np.float32(0.308)
    assert np.array_equal(grey(image, (8, 8)), expected[None])


def test_names_and_objects():
    assert find_transform(None) is None
    assert find_transform("imagenet") is IMAGENET and find_transform(CIFAR10) is CIFAR10
    custom = find_transform({"name": "mine", "mean": [0.5], "std": [2]})
    assert (custom.name, custom.mean, custom.std, custom.resize) == ("mine", (0.5,), (2.0,), None)


@pytest.mark.parametrize(
    "spec",
    [
        "Imagenet", "[1]", "{", {"mean": [1]}, {"mean": [1], "std": [0]}, {"mean": [], "std": []},
        {"mean": [1, 2], "std": [1]}, {"mean": "x", "std": [1]}, {"mean": 1, "std": 1},
        {"mean": [1], "std": [1], "resize": 0.5},
    ],
)  # fmt: skip
def test_bad_transforms(spec):
    with pytest.raises(InputError, match="transform") as caught:
        find_transform(spec)
    assert "\n" not in str(caught.value)
