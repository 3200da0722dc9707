"""From decoded images to network inputs: the transforms that ``--transform`` names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError


@dataclass(frozen=True)
class Transform:
    """How 8-bit pixels become float32 inputs.

    Parameters
    ----------
    name : str
    mean, std : tuple of float
        One value a channel, for pixels in 0..1: ``(p / 255 - mean) / std`` in float32.
    resize : float or None
        Size of the resized image over the size of the crop, such as 256 / 224. With None, images
        must have the network's size.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: float | None = None

    def __call__(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
        """Input [C, H, W] of one image [h, w, C].

        An image that has the network's size already is only normalised. Others are resized with
        Pillow's bilinear filter so that they cover the crop times `resize` (ImageNet: short side
        256 for 224), unless they do so already, and cropped at the centre.

        Raises
        ------
        InputError
            If the image's channels are not the transform's, or its size does not fit.
        """
        if image.shape[2] != len(self.mean):
            msg = (
                f"the image has {image.shape[2]} channel(s), transform {self.name!r} is for "
                f"{len(self.mean)}; use another transform"
            )
            raise InputError(msg)
        return self.normalise(self._fit(image, size))

    def normalise(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``(p / 255 - mean) / std`` in float32, [H, W, C] to [C, H, W]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (image.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def _fit(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        if image.shape[:2] == size:
            return image
        if self.resize is None:
            msg = (
                f"the image is {image.shape[0]}x{image.shape[1]} pixels, transform {self.name!r} "
                f"does not resize; the network takes {size[0]}x{size[1]}"
            )
            raise InputError(msg)
        resized = _cover(image, round(size[0] * self.resize), round(size[1] * self.resize))
        top = round((resized.shape[0] - size[0]) / 2)
        left = round((resized.shape[1] - size[1]) / 2)
        return resized[top : top + size[0], left : left + size[1]]


TRANSFORMS = {
    t.name: t
    for t in (
        Transform("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256 / 224),
        Transform("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    )
}
"""Transforms by name. Means and standard deviations are those of the training sets."""


def find_transform(spec: str | Mapping[str, Any] | Transform | None) -> Transform | None:
    """The transform that a name, a JSON object or a mapping describes.

    Parameters
    ----------
    spec : str, mapping, Transform or None
        ``imagenet``, ``cifar10``, or ``{"mean": [...], "std": [...], "resize": 1.14}`` (``resize``
        may be left out), also as text.

    Raises
    ------
    InputError
        If there is no such transform or the object does not describe one.
    """
    if spec is None or isinstance(spec, Transform):
        return spec
    if isinstance(spec, str):
        if spec in TRANSFORMS:
            return TRANSFORMS[spec]
        spec = _object(spec)
    try:
        mean, std = (tuple(float(v) for v in spec[key]) for key in ("mean", "std"))
        resize = float(spec["resize"]) if spec.get("resize") is not None else None
    except (KeyError, TypeError, ValueError):
        msg = f"transform {dict(spec)!r} needs lists of numbers under 'mean' and 'std'"
        raise InputError(msg) from None
    if not mean or len(mean) != len(std) or min(std) <= 0 or (resize is not None and resize < 1):
        msg = (
            f"transform {dict(spec)!r} is not possible: mean and std need one value a channel, "
            "std above 0, resize at least 1"
        )
        raise InputError(msg)
    return Transform(str(spec.get("name", "custom")), mean, std, resize)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        names = ", ".join(TRANSFORMS)
        msg = f"transform {text!r} does not exist; use {names}, or a JSON object with mean and std"
        raise InputError(msg)
    return value


def _cover(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """`image` scaled, keeping its proportions, to just cover `height` x `width`.

    The other side is rounded down, as torchvision's Resize does.
    """
    from PIL import Image

    h, w = image.shape[:2]
    if height * w >= width * h:
        new = (height, max(width, int(height * w / h)))
    else:
        new = (max(height, int(width * h / w)), width)
    if new == (h, w):
        return image
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    scaled = Image.fromarray(pixels).resize((new[1], new[0]), Image.Resampling.BILINEAR)
    return np.asarray(scaled).reshape(*new, image.shape[2])
