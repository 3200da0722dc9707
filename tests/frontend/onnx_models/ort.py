"""Models that onnxruntime's static quantizer writes, from a float ``.onnx``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from tests.frontend.onnx_models.quiet import quiet

FORMATS = {"QDQ": quantization.QuantFormat.QDQ, "QOperator": quantization.QuantFormat.QOperator}
TYPES = {
    "u8": quantization.QuantType.QUInt8,
    "s8": quantization.QuantType.QInt8,
    "u4": quantization.QuantType.QUInt4,
    "s4": quantization.QuantType.QInt4,
    "s16": quantization.QuantType.QInt16,
}


class Reader(quantization.CalibrationDataReader):
    """Hands out calibration images one batch after another."""

    def __init__(self, name: str, batches: Iterable[NDArray[np.float32]]) -> None:
        self._name = name
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def quantize_static(
    model: Path,
    output: Path,
    batches: Iterable[NDArray[np.float32]],
    *,
    form: str = "QDQ",
    activation: str = "u8",
    weight: str = "s8",
    per_channel: bool = False,
    input_name: str = "image",
    extra: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Pre-process and quantize, as onnxruntime's documentation says; `extra` are extra options."""
    prepared = output.with_suffix(".prepared.onnx")
    with quiet():
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(output),
            Reader(input_name, batches),
            quant_format=FORMATS[form],
            activation_type=TYPES[activation],
            weight_type=TYPES[weight],
            per_channel=per_channel,
            extra_options=extra,
            **options,
        )
    return output
