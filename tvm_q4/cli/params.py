"""Parameter types, checked while the command line is parsed."""

from __future__ import annotations

import re
from pathlib import Path

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
