"""DATA arguments: every form, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_q4.data import load_image, open_data, read_image
from tvm_q4.errors import InputError
from tvm_q4.library.inputs import InputSpec
from tvm_q4.transforms import TRANSFORMS

SPEC = InputSpec("x", (4, 3, 8, 6), "float32", "int8", (-127, 127))
GREY = InputSpec("x", (4, 1, 8, 6), "float32", None, None)
CIFAR10 = TRANSFORMS["cifar10"]


def _images(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 6, channels), dtype=np.uint8)


def _inputs(images: np.ndarray) -> np.ndarray:
    return np.stack([CIFAR10.normalise(image) for image in images])


def _npz(tmp_path: Path, **arrays: np.ndarray) -> Path:
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def _folder(tmp_path: Path, images: np.ndarray, table: str) -> Path:
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "labels.tsv").write_text(table)
    return tmp_path


def _all(dataset) -> np.ndarray:
    return np.concatenate([x for _, x in dataset.batches(2)])


def test_npz_of_floats(tmp_path):
    x = np.random.default_rng(0).normal(0, 1, (5, 3, 8, 6)).astype(np.float32)
    data = open_data(_npz(tmp_path, x=x, y=np.arange(5, dtype=np.uint8)), SPEC)
    assert data.count == 5 and np.array_equal(data.labels, np.arange(5))
    assert np.array_equal(_all(data), x)
    assert [(start, len(part)) for start, part in data.batches(2)] == [(0, 2), (2, 2), (4, 1)]
    assert [(start, len(part)) for start, part in data.batches(2, 3)] == [(0, 2), (2, 1)]
    assert sum(len(part) for _, part in data.batches(2, 99)) == 5


def test_npz_of_quantized_inputs(tmp_path):
    x = np.random.default_rng(0).integers(-127, 128, (3, 3, 8, 6), dtype=np.int8)
    data = open_data(_npz(tmp_path, x=x), SPEC)
    assert data.labels is None and np.array_equal(_all(data), x) and _all(data).dtype == np.int8


def test_npz_of_images(tmp_path):
    images = _images(5)
    path = _npz(tmp_path, x=images, y=np.zeros(5, np.int64))
    assert np.array_equal(_all(open_data(path, SPEC, transform="cifar10")), _inputs(images))
    with pytest.raises(InputError, match="--transform"):
        open_data(path, SPEC)


def test_npz_of_grey_images_without_channel_axis(tmp_path):
    images = _images(2, 1)
    transform = {"mean": [0.5], "std": [0.25]}
    expected = (images[..., 0].astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(
        0.25
    )
    for x in (images, images[..., 0]):
        data = open_data(_npz(tmp_path, x=x), GREY, transform=transform)
        assert np.array_equal(_all(data), expected[:, None])


def test_labelled_folder(tmp_path):
    images = _images(3)
    folder = _folder(tmp_path, images, "file\tclass_index\tname\n2.png\t7\tcat\n0.png\t0\tdog\n")
    data = open_data(folder, SPEC, transform="cifar10")
    assert data.labels.tolist() == [7, 0]
    assert np.array_equal(_all(data), _inputs(images[[2, 0]]))


def test_labelled_folder_without_heading(tmp_path):
    data = open_data(_folder(tmp_path, _images(1), "0.png\t3\n"), SPEC, transform="cifar10")
    assert data.labels.tolist() == [3]


def test_class_folders(tmp_path):
    images = _images(4)
    for i, (name, image) in enumerate(zip(("dog", "cat", "cat", "ant"), images, strict=True)):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name / f"{i}.PNG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = open_data(tmp_path, SPEC, transform="cifar10")
    assert data.labels.tolist() == [0, 1, 1, 2]
    assert np.array_equal(_all(data), _inputs(images[[3, 1, 2, 0]]))
    classes = tmp_path / "classes.txt"
    classes.write_text("owl\ndog\ncat\n\nant\n")
    data = open_data(tmp_path, SPEC, transform="cifar10", classes=classes)
    assert data.labels.tolist() == [3, 2, 2, 1]
    classes.write_text("dog\ncat\n")
    with pytest.raises(InputError, match=r"ant.*not among"):
        open_data(tmp_path, SPEC, transform="cifar10", classes=classes)
    classes.write_text("dog\ndog\n")
    with pytest.raises(InputError, match="distinct"):
        open_data(tmp_path, SPEC, transform="cifar10", classes=classes)
    with pytest.raises(InputError, match="cannot be read"):
        open_data(tmp_path, SPEC, transform="cifar10", classes=tmp_path / "none")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros(3)}, "no array 'x'"),
        ({"x": np.zeros((0, 3, 8, 6), np.float32)}, "no images"),
        ({"x": np.float32(1)}, "no images|holds no"),
        ({"x": np.zeros((2, 3, 8, 7), np.float32)}, r"float32 \[2, 3, 8, 7\].*\[N, 3, 8, 6\]"),
        ({"x": np.zeros((2, 3, 8, 6))}, "float64"),
        ({"x": np.zeros((2, 8, 6, 4), np.uint8)}, r"images uint8 \[N, H, W, 3\]"),
        ({"x": np.zeros((2, 3, 8, 6), np.float32), "y": np.zeros(3, int)}, "2 class indices"),
        ({"x": np.zeros((2, 3, 8, 6), np.float32), "y": np.zeros(2)}, "float64"),
        ({"x": np.zeros((2, 3, 8, 6), np.float32), "y": np.array([0, -1])}, "class indices"),
    ],
)
def test_bad_npz_contents(tmp_path, arrays, words):
    with pytest.raises(InputError, match=words) as caught:
        open_data(_npz(tmp_path, **arrays), SPEC, transform="cifar10")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "npy", "object"])
def test_bad_npz_files(tmp_path, kind):
    path = _npz(tmp_path, x=np.zeros((2, 3, 8, 6), np.float32))
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "npy":
        np.save(tmp_path / "data.npy", np.zeros(3))
        (tmp_path / "data.npy").rename(path)
    else:
        np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"data.npz") as caught:
        open_data(path, SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file\tclass_index\n", "lists no images"),
        ("", "lists no images"),
        ("file\tclass\n0.png\tcat\n", "row 1"),
        ("0.png\t1\n0.png\n", "row 2"),
        ("9.png\t1\n", r"9.png', which is not there"),
    ],
)
def test_bad_tables(tmp_path, table, words):
    with pytest.raises(InputError, match=words):
        open_data(_folder(tmp_path, _images(1), table), SPEC, transform="cifar10")


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_data(tmp_path / "none", SPEC)
    with pytest.raises(InputError, match=r"neither labels.tsv nor class folders"):
        open_data(tmp_path, SPEC, transform="cifar10")
    with pytest.raises(InputError, match="--transform"):
        open_data(tmp_path, SPEC)


def test_bad_images(tmp_path):
    folder = _folder(tmp_path, _images(2), "0.png\t0\n1.png\t0\n")
    (folder / "images" / "1.png").write_bytes((folder / "images" / "1.png").read_bytes()[:60])
    data = open_data(folder, SPEC, transform="cifar10")
    with pytest.raises(InputError, match=r"1.png' cannot be read"):
        _all(data)
    Image.new("RGB", (9, 9)).save(folder / "images" / "1.png")
    with pytest.raises(InputError, match=r"1.png.*9x9"):
        _all(data)


def test_one_image(tmp_path):
    folder = _folder(tmp_path, _images(1), "0.png\t0\n")
    path = folder / "images" / "0.png"
    assert np.array_equal(load_image(path, SPEC, "cifar10"), _inputs(_images(1)))
    with pytest.raises(InputError, match="--transform"):
        load_image(path, SPEC, None)
    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / "none.png", SPEC, "cifar10")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "labels.tsv", 3)
    with pytest.raises(InputError, match="2 channels"):
        read_image(path, 2)
    assert read_image(path, 1).shape == (8, 6, 1)


def test_palette_and_alpha_images_become_rgb(tmp_path):
    image = Image.fromarray(_images(1)[0])
    image.convert("RGBA").save(tmp_path / "a.png")
    image.convert("P").save(tmp_path / "p.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 3), _images(1)[0])
    expected = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "p.png", 3), expected)


def test_imagenet_sample_gives_the_published_inputs(data_dir):
    """NVIDIA's int8 inputs by checksum: decoding, crop and normalisation are right to the bit."""
    import zlib

    spec = InputSpec("x", (1, 3, 224, 224), "float32", "int8", (-127, 127))
    data = open_data(data_dir("imagenet-sample"), spec, transform="imagenet")
    reference = np.load(data_dir("nvidia-resnet50-w4a4", "reference.npz"))
    for start, x in data.batches(1, 8):
        scaled = np.rint(x * np.float32(127) / np.float32(2.64))
        q = np.clip(scaled, -127, 127).astype(np.int8)
        assert zlib.crc32(q[0].tobytes()) == int(reference["input_crc32"][start])
    assert data.count == 500 and np.array_equal(data.labels, reference["label"])


def test_taking_images_by_index(tmp_path):
    images = _images(5)
    data = open_data(_npz(tmp_path, x=images), SPEC, transform="cifar10")
    assert np.array_equal(data.take([3, 0, 3]), _inputs(images)[[3, 0, 3]])
    assert np.array_equal(data.take(np.array([4])), data.read(4, 5))
