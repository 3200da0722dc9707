"""Parameter types, checked while the command line is parsed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class ImageSize(click.ParamType):
    """``HxW`` in pixels, such as ``224x224``."""

    name = "HxW"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Height and width of a string of the form ``HxW``."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", value)
        if match is None:
            self.fail(f"{value!r} is not HEIGHTxWIDTH, such as 224x224", param, ctx)
        return int(match[1]), int(match[2])


IMAGE_SIZE = ImageSize()
COUNT = click.IntRange(1)
PATH = click.Path(path_type=Path)
_ROUNDINGS = ("half_even", "half_away", "half_up", "floor")


def hawq_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options for what a HAWQ checkpoint does not tell; verbs that take MODEL hand them on."""
    for option in (
        click.option("--hawq-rounding", type=click.Choice(_ROUNDINGS),
                     help="HAWQ checkpoints: PyTorch's half_even, or TVM's rounding modes."),
        click.option("--hawq-config", metavar="NAME|FILE",
                     help="HAWQ checkpoints: bit config of the training, such as bops_0.5."),
        click.option("--arch", metavar="NAME",
                     help="HAWQ checkpoints: resnet18, 34, 50, 101; 50b and 101b are v1.5."),
    ):  # fmt: skip
        function = option(function)
    return function
