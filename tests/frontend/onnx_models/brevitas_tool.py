"""Models that Brevitas quantizes and exports: QCDQ and QONNX.

Networks pass through its own flow for trained floats (`preprocess_for_quantize`, `quantize`), with
statistics from a few images, as its examples do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.frontend.onnx_models.networks import SIZE, images
from tests.frontend.onnx_models.quiet import quiet

EXPORTS = ("qcdq", "qonnx")


def quantized(
    network: nn.Module,
    bits: int,
    *,
    per_channel: bool = False,
    bias: bool = True,
    size: tuple[int, ...] = SIZE,
) -> nn.Module:
    """A Brevitas model of a float `network`: weights, activations and the input in `bits`.

    `bias` says whether biases are quantized to 32 bits or stay float.
    """
    with quiet():
        import brevitas.nn as qnn
        from brevitas.graph.calibrate import calibration_mode
        from brevitas.graph.quantize import preprocess_for_quantize, quantize
        from brevitas.quant import (
            Int8ActPerTensorFloat,
            Int8WeightPerChannelFloat,
            Int8WeightPerTensorFloat,
            Int32Bias,
            Uint8ActPerTensorFloat,
        )

        weight = Int8WeightPerChannelFloat if per_channel else Int8WeightPerTensorFloat
        layer = {
            "weight_quant": weight,
            "weight_bit_width": bits,
            "bias_quant": Int32Bias if bias else None,
            "return_quant_tensor": True,
        }
        signed = {"act_quant": Int8ActPerTensorFloat, "return_quant_tensor": True}
        unsigned = {"act_quant": Uint8ActPerTensorFloat, "return_quant_tensor": True}
        narrow = {"bit_width": bits}
        x = torch.from_numpy(images(8, size))
        model = quantize(
            preprocess_for_quantize(network),
            quant_identity_map={
                "signed": (qnn.QuantIdentity, signed | narrow),
                "unsigned": (qnn.QuantIdentity, unsigned | narrow),
            },
            compute_layer_map={
                nn.Conv2d: (qnn.QuantConv2d, layer),
                nn.Linear: (qnn.QuantLinear, layer),
                nn.AdaptiveAvgPool2d: None,
            },
            quant_act_map={nn.ReLU: (qnn.QuantReLU, unsigned | narrow)},
        )
        with torch.no_grad(), calibration_mode(model):
            model(x)
        return nn.Sequential(model.eval())  # torch's older exporter refuses a bare GraphModule


def export(
    model: nn.Module, path: Path, form: str, *, dynamo: bool, size: tuple[int, ...] = SIZE
) -> Path:
    """Write a Brevitas model as QCDQ or QONNX, by either of torch's exporters."""
    with quiet():
        from brevitas.export import export_onnx_qcdq, export_qonnx

        x = torch.from_numpy(images(1, size))
        options: dict[str, Any] = {"dynamo": dynamo}
        if not dynamo:
            options |= {"input_names": ["image"], "dynamic_axes": {"image": {0: "batch"}}}
        writer = {"qcdq": export_onnx_qcdq, "qonnx": export_qonnx}[form]
        writer(model, x, str(path), **options)
    return path
