"""Physical layouts of activation tensors between kernels.

Integer tensors are NHWC with the channels padded to the vector width and, around each image, a
halo that is filled with the tensor's zero point: a convolution reads its padding from there, so its
inner loop has no bounds checks. Float tensors (the input, float islands, logits) stay plain NCHW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LANES = 16


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    """How one logical [N, C, H, W] tensor lies in memory.

    Parameters
    ----------
    kind : {"NHWC", "NCHW"}
        ``NCHW`` is the plain logical order without padding.
    halo : tuple of int
        Rows and columns added at top, left, bottom and right (NHWC only).
    channels : int
        Physical channels, at least the logical ones (NHWC only).
    """

    kind: str
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    channels: int = 0

    def physical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in memory of a logical tensor of that shape ([N, C] counts as [N, C, 1, 1])."""
        if self.kind == "NCHW":
            return shape
        n, _, h, w = shape4(shape)
        top, left, bottom, right = self.halo
        return (n, h + top + bottom, w + left + right, self.channels)

    def tag(self) -> str:
        """Short form for signatures, such as ``NHWC64h1,1,1,1``."""
        if self.kind == "NCHW":
            return "NCHW"
        halo = "h" + ",".join(map(str, self.halo)) if any(self.halo) else ""
        return f"NHWC{self.channels}{halo}"

    def to_json(self) -> dict[str, Any]:
        """The form stored in a library's metadata."""
        if self.kind == "NCHW":
            return {"kind": "NCHW"}
        return {"kind": self.kind, "halo": list(self.halo), "channels": self.channels}


PLAIN = Layout("NCHW")


def shape4(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A logical shape as [N, C, H, W]."""
    padded = tuple(shape) + (1,) * (4 - len(shape))
    return padded[0], padded[1], padded[2], padded[3]
