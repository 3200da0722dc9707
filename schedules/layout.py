"""Physical layouts of activation tensors between kernels.

Integer tensors are NHWC with the channels padded to the vector width and, around each image, a
halo that is filled with the tensor's zero point: a convolution reads its padding from there, so its
inner loop has no bounds checks. Float tensors (the input, float islands, logits) stay plain NCHW.

On CPUs an element is a container of its own (int8 for 4 bits too). On GPUs elements of 4, 8, 16 or
32 bits are packed into int32 words along the channels, the lowest channel in the lowest bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LANES = 16
WORD_BITS = 32
VECTOR_BITS = 128
PACKED_BITS = (4, 8, 16, 32)


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
    bits : {0, 4, 8, 16, 32}
        Bits of an element that is packed into int32 words; 0 for elements in their own containers.
    """

    kind: str
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    channels: int = 0
    bits: int = 0

    @property
    def words(self) -> int:
        """int32 words of a pixel (packed elements only)."""
        return self.channels * self.bits // WORD_BITS

    def physical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in memory of a logical tensor of that shape ([N, C] counts as [N, C, 1, 1])."""
        if self.kind == "NCHW":
            return shape
        n, _, h, w = shape4(shape)
        top, left, bottom, right = self.halo
        innermost = self.words if self.bits else self.channels
        return (n, h + top + bottom, w + left + right, innermost)

    def physical_dtype(self, dtype: str) -> str:
        """Element type in memory of a tensor of that logical dtype."""
        return "int32" if self.bits else dtype

    def tag(self) -> str:
        """Short form for signatures: ``NHWC64h1,1,1,1``, or ``NHWC64p4`` (packed, 4 bits)."""
        if self.kind == "NCHW":
            return "NCHW"
        halo = "h" + ",".join(map(str, self.halo)) if any(self.halo) else ""
        packed = f"p{self.bits}" if self.bits else ""
        return f"NHWC{self.channels}{packed}{halo}"

    def to_json(self) -> dict[str, Any]:
        """The form stored in a library's metadata."""
        if self.kind == "NCHW":
            return {"kind": "NCHW"}
        plain = {"kind": self.kind, "halo": list(self.halo), "channels": self.channels}
        return plain | {"bits": self.bits} if self.bits else plain


PLAIN = Layout("NCHW")


def packed(layout: Layout, shape: tuple[int, ...], bits: int) -> Layout:
    """The same placement with elements packed into words, a pixel a multiple of 16 bytes.

    Parameters
    ----------
    layout : Layout
        As ``AssignLayout`` gives it; a plain one is returned as it is.
    shape : tuple of int
        Logical shape.
    bits : int
        Least number of bits that holds the tensor's values.
    """
    if layout.kind == "NCHW":
        return layout
    if layout.channels < LANES:
        return _packed_image(layout, shape4(shape)[3])
    width = next(b for b in PACKED_BITS if b >= bits)
    channels = round_up(shape4(shape)[1], max(LANES, VECTOR_BITS // width))
    return Layout("NHWC", layout.halo, channels, width)


def _packed_image(layout: Layout, width: int) -> Layout:
    """An image of few channels, 8 bits each: a row of a window is one run of words.

    The run is read in vectors, so it may reach up to three pixels beyond the window: the halo is
    wider on the right by as many, and rows start at multiples of 16 bytes.
    """
    top, left, bottom, right = layout.halo
    total = round_up(width + left + right + 3, 4)
    return Layout("NHWC", (top, left, bottom, total - width - left), layout.channels, 8)


def shape4(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A logical shape as [N, C, H, W]."""
    padded = tuple(shape) + (1,) * (4 - len(shape))
    return padded[0], padded[1], padded[2], padded[3]
