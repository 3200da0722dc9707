"""ResNets as HAWQ-V3 names their modules: topology, shapes, and which quantizer feeds what.

Topology follows pytorchcv: ``resnet50`` has a stage's stride on the first 1x1 convolution (v1),
``resnet50b`` on the 3x3 one (v1.5). A file holds no topology; the two have the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tvm_q4.errors import InputError, UnsupportedError

OUTPUT = "quant_output"
INPUT_ACT, OUTPUT_ACT, STREAM_ACT = "quant_input", "quant_act_output", "quant_act_int32"
_EXPANSION = 4


@dataclass(frozen=True)
class Conv:
    """A convolution: its module, the module that quantizes its input, and its geometry."""

    name: str
    reads: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, OIHW."""
        return (self.out_channels, self.in_channels, self.kernel, self.kernel)

    @property
    def padding(self) -> int:
        """Rows and columns of zeros on each side."""
        return self.kernel // 2


@dataclass(frozen=True)
class Unit:
    """A residual unit: its main path, and the convolution of its shortcut if it has one."""

    prefix: str
    convs: tuple[Conv, ...]
    identity: Conv | None


@dataclass(frozen=True)
class Architecture:
    """A network.

    Parameters
    ----------
    name : str
        pytorchcv's name.
    units : tuple of int
        Units of each stage.
    bottleneck : bool
        Units of 1x1, 3x3 and 1x1 convolutions; else of two 3x3 ones.
    stride_on_3x3 : bool
        Where a bottleneck has its stride; else on the first 1x1.
    widths : tuple of int
        Channels of each stage; a bottleneck's results have four times as many.
    stem : int
        Channels of the first convolution.
    """

    name: str
    units: tuple[int, ...]
    bottleneck: bool = False
    stride_on_3x3: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64

    @property
    def first(self) -> Conv:
        """The 7x7 convolution that reads the image."""
        name = "quant_init_convbn" if self.bottleneck else "quant_init_block_convbn"
        return Conv(name, INPUT_ACT, 3, self.stem, 7, 2)

    @property
    def features(self) -> int:
        """Channels that the linear layer reads."""
        return self.widths[-1] * (_EXPANSION if self.bottleneck else 1)

    def residual_units(self) -> Iterator[Unit]:
        """Units in order."""
        channels = self.stem
        for s, (count, width) in enumerate(zip(self.units, self.widths, strict=True), start=1):
            for u in range(1, count + 1):
                stride = 2 if s > 1 and u == 1 else 1
                unit = self._unit(f"stage{s}.unit{u}", channels, width, stride)
                channels = unit.convs[-1].out_channels
                yield unit

    def _unit(self, prefix: str, channels: int, width: int, stride: int) -> Unit:
        if self.bottleneck:
            first, second = (1, stride) if self.stride_on_3x3 else (stride, 1)
            plan = [(width, 1, first), (width, 3, second), (width * _EXPANSION, 1, 1)]
        else:
            plan = [(width, 3, stride), (width, 3, 1)]
        convs, read = [], channels
        for i, (out, kernel, step) in enumerate(plan):
            act = f"{prefix}.quant_act{i or ''}"
            convs.append(Conv(f"{prefix}.quant_convbn{i + 1}", act, read, out, kernel, step))
            read = out
        identity = None
        if stride != 1 or channels != read:
            name = f"{prefix}.quant_identity_convbn"
            identity = Conv(name, f"{prefix}.quant_act", channels, read, 1, stride)
        return Unit(prefix, tuple(convs), identity)

    def convs(self) -> list[Conv]:
        """All convolutions, an identity convolution after the main ones of its unit."""
        found = [self.first]
        for unit in self.residual_units():
            found += [*unit.convs, *([unit.identity] if unit.identity else [])]
        return found

    def reads(self) -> dict[str, str]:
        """Quantizer of the input of each convolution and of the linear layer, in order."""
        return {c.name: c.reads for c in self.convs()} | {OUTPUT: OUTPUT_ACT}

    def streams(self) -> list[str]:
        """Quantizers of the residual stream: after the first convolution, then of each unit."""
        return [STREAM_ACT, *(f"{u.prefix}.{STREAM_ACT}" for u in self.residual_units())]


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("resnet18", (2, 2, 2, 2)),
        Architecture("resnet34", (3, 4, 6, 3)),
        Architecture("resnet50", (3, 4, 6, 3), bottleneck=True),
        Architecture("resnet50b", (3, 4, 6, 3), bottleneck=True, stride_on_3x3=True),
        Architecture("resnet101", (3, 4, 23, 3), bottleneck=True),
        Architecture("resnet101b", (3, 4, 23, 3), bottleneck=True, stride_on_3x3=True),
    )
}
_UNIT = re.compile(r"stage(\d+)\.unit(\d+)\.")


def find_architecture(
    asked: str | Architecture | None, stated: str | None, keys: Iterable[str], where: str
) -> Architecture:
    """Architecture of a checkpoint.

    Parameters
    ----------
    asked : str, Architecture or None
        What the user says.
    stated : str or None
        What the file says; only ``checkpoint.pth.tar`` does.
    keys : iterable of str
        Keys of the file's tensors, without prefix.
    where : str
        The file, for errors.

    Raises
    ------
    InputError
        If two of them contradict each other, or nothing tells the architecture.
    UnsupportedError
        If the file is of a network that is not known here.
    """
    if isinstance(asked, Architecture):
        return asked
    if asked is not None:
        return _asked(asked, stated, where)
    if stated is not None:
        if stated not in ARCHITECTURES:
            msg = f"{where} is of architecture '{stated}'; known are {', '.join(ARCHITECTURES)}"
            raise UnsupportedError(msg)
        return ARCHITECTURES[stated]
    return _inferred(list(keys), where)


def _asked(asked: str, stated: str | None, where: str) -> Architecture:
    if asked not in ARCHITECTURES:
        raise InputError(f"architecture '{asked}' is unknown; use {', '.join(ARCHITECTURES)}")
    if stated not in (None, asked):
        msg = f"{where} says that it is of architecture '{stated}', not '{asked}'; drop --arch"
        raise InputError(msg)
    return ARCHITECTURES[asked]


def _inferred(keys: list[str], where: str) -> Architecture:
    units = {(int(m[1]), int(m[2])) for m in map(_UNIT.match, keys) if m}
    stages = [s for s, _ in units]
    counts = tuple(stages.count(s) for s in sorted(set(stages)))
    bottleneck = any("quant_convbn3." in k for k in keys)
    found = [a for a in ARCHITECTURES.values() if (a.units, a.bottleneck) == (counts, bottleneck)]
    if not found:
        kind = "bottleneck" if bottleneck else "basic"
        msg = f"{where} has {kind} units {list(counts)}, which is none of the known networks"
        raise UnsupportedError(f"{msg} ({', '.join(ARCHITECTURES)})")
    if len(found) > 1:
        choices = " or ".join(f"--arch {a.name} ({_stride(a)})" for a in found)
        raise InputError(f"{where} does not tell its architecture; give {choices}")
    return found[0]


def _stride(a: Architecture) -> str:
    return "v1.5, stride on the 3x3" if a.stride_on_3x3 else "v1, stride on the first 1x1"
