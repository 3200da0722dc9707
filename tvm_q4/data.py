"""DATA arguments: labelled images from an ``.npz`` file, a labelled folder or class folders."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError
from tvm_q4.library.inputs import InputSpec
from tvm_q4.transforms import Transform, find_transform

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})


@dataclass(frozen=True)
class Dataset:
    """Images, read when they are needed, and their labels.

    Parameters
    ----------
    count : int
        Number of images.
    read : callable
        Network inputs [stop - start, C, H, W] of the images start to stop.
    labels : int64 ndarray [count] or None
    """

    count: int
    read: Callable[[int, int], NDArray]
    labels: NDArray[np.int64] | None

    def take(self, indices: Iterable[int]) -> NDArray:
        """Inputs [len(indices), C, H, W] of the images at `indices`, in that order."""
        return np.concatenate([self.read(int(i), int(i) + 1) for i in indices])

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[int, NDArray]]:
        """Position of the first image and inputs of up to `size` images, over the first `limit`."""
        end = self.count if limit is None else min(limit, self.count)
        for start in range(0, end, size):
            yield start, self.read(start, min(start + size, end))


def open_data(
    path: str | Path,
    spec: InputSpec,
    *,
    transform: str | Mapping[str, Any] | Transform | None = None,
    classes: str | Path | None = None,
) -> Dataset:
    """Open a DATA argument for a network.

    Parameters
    ----------
    path : str or Path
        An ``.npz`` (``x`` float32 [N, C, H, W] normalised, integers of the network's quantized
        input, or uint8 [N, H, W, C] images; ``y`` labels, optional), a folder with ``labels.tsv``
        (file, class index; files under ``images/``), or a folder of class folders.
    spec : InputSpec
        The network's input.
    transform : str, mapping or Transform, optional
        For images; see `tvm_q4.transforms.find_transform`.
    classes : str or Path, optional
        File with one class name a line, in order, for class folders; else their sorted names count.

    Raises
    ------
    InputError
        If the data is missing, damaged, of another shape than the network's, or empty.
    """
    path = Path(path)
    if path.is_dir():
        reader = _ImageReader(spec, _needed(transform, path), path)
        if (path / "labels.tsv").is_file():
            return _image_list(reader, *_read_tsv(path))
        return _image_list(reader, *_read_class_folders(path, classes))
    if not path.is_file():
        raise InputError(f"data '{path}' does not exist; give an .npz file or a folder of images")
    return _open_npz(path, spec, find_transform(transform))


def read_image(path: str | Path, channels: int) -> NDArray[np.uint8]:
    """Decode an image file to [H, W, channels] (1: grey, 3: RGB).

    Raises
    ------
    InputError
        If the file is missing or is no image.
    """
    from PIL import Image, UnidentifiedImageError

    if channels not in (1, 3):
        raise InputError(f"the network takes {channels} channels; images have 1 or 3, give an .npz")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise InputError(f"image '{path}' does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image '{path}' cannot be read: {error}") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def load_image(
    path: str | Path, spec: InputSpec, transform: str | Mapping[str, Any] | Transform | None
) -> NDArray[np.float32]:
    """Network input [1, C, H, W] of one image file.

    Raises
    ------
    InputError
        If the file is no image, or no transform is given.
    """
    reader = _ImageReader(spec, _needed(transform, path), Path(path))
    return reader.transform_image(read_image(path, spec.shape[1]), path)[None]


@dataclass(frozen=True)
class _ImageReader:
    spec: InputSpec
    transform: Transform
    source: Path

    def transform_image(self, image: NDArray[np.uint8], name: object) -> NDArray[np.float32]:
        try:
            return self.transform(image, (self.spec.shape[2], self.spec.shape[3]))
        except InputError as error:
            raise InputError(f"image '{name}': {error}") from None


def _needed(transform: str | Mapping[str, Any] | Transform | None, source: object) -> Transform:
    found = find_transform(transform)
    if found is None:
        msg = (
            f"data '{source}' holds images and the model does not tell how they are normalised; "
            "give --transform"
        )
        raise InputError(msg)
    return found


def _image_list(reader: _ImageReader, files: list[Path], labels: list[int]) -> Dataset:
    def read(start: int, stop: int) -> NDArray:
        channels = reader.spec.shape[1]
        return np.stack(
            [reader.transform_image(read_image(f, channels), f) for f in files[start:stop]]
        )

    missing = next((f for f in files if not f.is_file()), None)
    if missing is not None:
        raise InputError(f"data '{reader.source}' lists the image '{missing}', which is not there")
    return Dataset(len(files), read, np.array(labels, np.int64))


def _read_tsv(folder: Path) -> tuple[list[Path], list[int]]:
    """Files and class indices of ``labels.tsv``; a first line without an index is its heading."""
    path = folder / "labels.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    if rows and (len(rows[0]) < 2 or not rows[0][1].isdecimal()):
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or not row[1].isdecimal():
            msg = f"'{path}' row {number} is {row!r}; columns file and class index are needed"
            raise InputError(msg)
    if not rows:
        raise InputError(f"'{path}' lists no images; columns file and class index are needed")
    return [folder / "images" / row[0] for row in rows], [int(row[1]) for row in rows]


def _read_class_folders(folder: Path, classes: str | Path | None) -> tuple[list[Path], list[int]]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    order = {name: i for i, name in enumerate(_read_classes(classes) if classes else names)}
    files: list[Path] = []
    labels: list[int] = []
    for name in names:
        if name not in order:
            raise InputError(
                f"class folder '{folder / name}' is not among the names in '{classes}'"
            )
        found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        files += found
        labels += [order[name]] * len(found)
    if not files:
        msg = f"data '{folder}' has neither labels.tsv nor class folders with images"
        raise InputError(msg)
    return files, labels


def _read_classes(path: str | Path) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"classes file '{path}' cannot be read: {error}") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(set(names)) != len(names) or not names:
        raise InputError(
            f"classes file '{path}' needs distinct names, one a line; it has {len(names)}"
        )
    return names


def _open_npz(path: Path, spec: InputSpec, transform: Transform | None) -> Dataset:
    arrays = load_npz(path, "x", "y")
    if "x" not in arrays:
        raise InputError(f"data '{path}' has no array 'x'; see DATA in the help")
    x = arrays["x"]
    labels = _labels(arrays["y"], len(x), path) if "y" in arrays else None
    if not x.ndim or not len(x):
        raise InputError(f"data '{path}' holds no images: x has shape {list(x.shape)}")
    if _is_input(x, spec):
        return Dataset(len(x), lambda start, stop: x[start:stop], labels)
    images = _as_images(x, path, spec)
    reader = _ImageReader(spec, _needed(transform, path), path)

    def read(start: int, stop: int) -> NDArray:
        return np.stack(
            [reader.transform_image(images[i], f"{path}[{i}]") for i in range(start, stop)]
        )

    return Dataset(len(x), read, labels)


def _is_input(x: NDArray, spec: InputSpec) -> bool:
    """Whether an array holds network inputs (and not images)."""
    return str(x.dtype) in spec.dtypes and x.ndim == 4 and x.shape[1:] == spec.shape[1:]


def _as_images(x: NDArray, path: Path, spec: InputSpec) -> NDArray[np.uint8]:
    channels = spec.shape[1]
    if x.dtype == np.uint8 and x.ndim == 3 and channels == 1:
        return x[..., None]
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != channels:
        msg = (
            f"data '{path}' has x {x.dtype} {list(x.shape)}; the network takes {spec}, or images "
            f"uint8 [N, H, W, {channels}]"
        )
        raise InputError(msg)
    return x


def _labels(y: NDArray, count: int, path: Path) -> NDArray[np.int64]:
    if y.shape != (count,) or not np.issubdtype(y.dtype, np.integer) or (y < 0).any():
        msg = (
            f"data '{path}' has y {y.dtype} {list(y.shape)}; it needs {count} class indices from 0"
        )
        raise InputError(msg)
    return y.astype(np.int64)


def load_npz(path: str | Path, *names: str) -> dict[str, NDArray]:
    """Those of the named arrays that an ``.npz`` file has.

    Raises
    ------
    InputError
        If the file is missing, damaged, no ``.npz``, or holds Python objects.
    """
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            msg = f"data '{path}' is a single array; an .npz with x (and y) is needed"
            raise InputError(msg)
        with opened as file:
            return {name: file[name] for name in names if name in file.files}
    except FileNotFoundError:
        raise InputError(f"data '{path}' does not exist") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"data '{path}' is not a readable .npz file: {error}") from None
