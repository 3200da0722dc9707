"""What is compared: ``--config [NAME=]SPEC`` arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_q4.errors import InputError
from tvm_q4.quantize.config import PRESETS, BitConfig, load_bit_config

FLOAT = "float"
PRESET, BITS, MODEL = "preset", "bit config", "model"


@dataclass(frozen=True)
class Config:
    """One row of a comparison.

    Parameters
    ----------
    name : str
        How the report calls it.
    spec : str
        What the user gave: a preset's name, a file, ``zoo:NAME@CONFIG``, or ``float``.
    kind : {"float", "preset", "bit config", "model"}
        A "model" is quantized already; presets and bit configs say how the float model is to be.
    bits : BitConfig, optional
        Of a preset or a bit config.
    """

    name: str
    spec: str
    kind: str
    bits: BitConfig | None = None

    @property
    def needs_float_model(self) -> bool:
        """Whether the float model is read for it."""
        return self.kind != MODEL


def parse_configs(texts: Sequence[str | Path]) -> list[Config]:
    """Configs in the order given.

    Parameters
    ----------
    texts : sequence of str
        Each ``SPEC`` or ``NAME=SPEC``; without a name, a file's name without its suffix is taken.

    Raises
    ------
    InputError
        If there is none, one is neither of what a config can be, or two have the same name.
    """
    if not texts:
        raise InputError("no config was given; give presets, bit configs or quantized models")
    configs = [_parse(str(text)) for text in texts]
    names = [config.name for config in configs]
    for config in configs:
        if names.count(config.name) > 1:
            msg = f"config name '{config.name}' is there {names.count(config.name)} times"
            raise InputError(f"{msg}; name one of them: --config NAME={config.spec}")
    return configs


def _parse(text: str) -> Config:
    name, spec = "", text
    if "=" in text and not Path(text).exists():
        name, _, spec = text.partition("=")
        if not name.strip():
            raise InputError(f"config '{text}' has no name before '='; write NAME={spec}")
    if spec == FLOAT:
        return Config(name or spec, spec, FLOAT)
    if spec in PRESETS:
        return Config(name or spec, spec, PRESET, PRESETS[spec])
    path = Path(spec)
    if path.suffix == ".json" and path.is_file():
        return Config(name or path.stem, spec, BITS, load_bit_config(path))
    if spec.startswith("zoo:") and "@" in spec:
        return Config(name or spec.removeprefix("zoo:"), spec, MODEL)
    if not path.exists():
        presets = ", ".join(PRESETS)
        msg = f"config '{spec}' is neither {FLOAT}, a preset ({presets}) nor a file that exists"
        raise InputError(f"{msg}; give one of these, a bit config (.json) or a quantized model")
    return Config(name or path.stem, spec, MODEL)
