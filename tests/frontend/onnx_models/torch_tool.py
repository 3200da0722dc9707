"""Models that torchao quantizes (PT2E) and torch's exporter writes as ``.onnx``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from tests.frontend.onnx_models.networks import SIZE, images
from tests.frontend.onnx_models.quiet import quiet

_BATCH = 4


def quantized(network: nn.Module, size: tuple[int, ...] = SIZE) -> ExportedProgram:
    """W8A8 by torchao's own quantizer for x86 (unsigned activations, a scale for each channel)."""
    with quiet():
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        x = (torch.from_numpy(images(_BATCH, size)),)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(network.eval(), x).module(), quantizer)
        with torch.no_grad():
            prepared(*x)
        converted = move_exported_model_to_eval(convert_pt2e(prepared))
        return torch.export.export(converted, x)


def export(program: ExportedProgram, path: Path, *, opset: int | None = None) -> Path:
    """Write a quantized program with torch's exporter (it needs onnxscript)."""
    with quiet():
        torch.onnx.export(program, (), str(path), dynamo=True, opset_version=opset)
    return path
