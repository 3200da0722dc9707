"""Import of ONNX models (``.onnx``) into a Relax module of stage "qdq".

Four styles of quantized models are understood, from opset 7 to the newest that the onnx package
knows: QDQ (QuantizeLinear and DequantizeLinear around float operators), QCDQ (with a Clip between
whose bounds are the bits: Brevitas), QOperator (QLinearConv and its family: ONNX Runtime) and
QONNX (``Quant``). The protobuf is read here, not by TVM's importer, which loses the Clip and knows
no INT4. Names are those of `tvm_q4.frontend.torch_export`, with the weight's module path
(``layer1.0.conv1`` for ``layer1.0.conv1.weight``) or else the node's name for a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import tvm

from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.onnx_file import read_onnx
from tvm_q4.frontend.onnx_importer import OnnxImporter
from tvm_q4.frontend.onnx_ops.registry import QONNX
from tvm_q4.frontend.onnx_structure import build_graph, describe
from tvm_q4.meta import with_meta

_OLDEST_OPSET = 7


def load_onnx_model(
    path: Path,
    *,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    require_quantized: bool = False,
) -> tvm.IRModule:
    """Read an ``.onnx`` file and import it; the parameters of `tvm_q4.frontend.load_model`.

    Raises
    ------
    InputError
        If the file cannot be read as a model, or is float and `require_quantized` is set.
    UnsupportedError
        As `import_onnx`.
    """
    file = read_onnx(path)
    if require_quantized and quantization_style(file.model) == "float":
        msg = f"'{path}' has no quantize nodes: it is a float model"
        raise InputError(f"{msg}; quantize it first")
    return import_onnx(
        file.model, folder=file.folder, batch=batch, image_size=image_size,
        name=path.stem, facts={"sha256": file.sha256},
    )  # fmt: skip


def import_onnx(
    model: onnx.ModelProto,
    *,
    folder: Path | None = None,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    name: str = "model",
    facts: dict[str, Any] | None = None,
) -> tvm.IRModule:
    """Import a model as float operators between ``q4.quantize`` and ``q4.dequantize``.

    Parameters
    ----------
    model : onnx.ModelProto
        One float32 input [N, C, H, W], or [N, H, W, C] that is transposed at once, and one output;
        static or dynamic batch.
    folder : Path or None
        Where external data stands.
    batch : int or None
        Batch to specialise to; None is the recorded one, or 1 where it is dynamic.
    image_size : (int, int) or None
        Height and width to specialise to; None is the recorded size.
    name : str
        Name of the model, stored in the module's facts.
    facts : dict or None
        More facts to store (`tvm_q4.meta.model_meta`).

    Returns
    -------
    tvm.IRModule
        One function ``main(x)`` on [N, C, H, W], one dataflow block, static shapes.

    Raises
    ------
    UnsupportedError
        If the model holds an operator, or a use of one, that cannot be expressed; the message names
        the node.
    InputError
        If the graph is damaged, or batch or image size do not fit it.
    """
    opsets = _opsets(model)
    if model.functions:
        model = _inlined(model)
    graph = build_graph(model.graph)
    importer = OnnxImporter(graph, opsets, folder, batch, image_size)
    mod = importer.run()
    tool = f"{model.producer_name} {model.producer_version}".strip()
    stored: dict[str, Any] = {
        "name": name,
        "source_format": "onnx",
        "source_tool": tool or None,
        "source_details": {"opset": str(opsets[""]), "quantization": quantization_style(model)},
        "onnx_tensors": importer.tensors,
    }
    if importer.channels_last:
        stored["source_details"]["input"] = "NHWC"
    return with_meta(mod, **(stored | (facts or {})))


def quantization_style(model: onnx.ModelProto) -> str:
    """How a model is quantized: ``QDQ``, ``QCDQ``, ``QOperator``, ``QONNX`` or ``float``."""
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    kinds = {n.op_type for n in nodes}
    if any(n.domain in QONNX for n in nodes):
        return "QONNX"
    if any(k.startswith("QLinear") or k == "QGemm" for k in kinds):
        return "QOperator"
    if not kinds & {"QuantizeLinear", "DequantizeLinear"}:
        return "float"
    clipped = {o for n in nodes if n.op_type == "Clip" for o in n.output}
    read = {i for n in nodes if n.op_type == "DequantizeLinear" for i in n.input[:1]}
    return "QCDQ" if clipped & read else "QDQ"


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Version of the operator set of each domain."""
    found = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if "" not in found:
        raise InputError("the model names no version of ONNX's operator set; the file is damaged")
    if not _OLDEST_OPSET <= found[""] <= newest:
        msg = (
            f"the model uses opset {found['']}; onnx {onnx.__version__} here knows "
            f"{_OLDEST_OPSET} to {newest}; convert the model or install a newer onnx"
        )
        raise UnsupportedError(msg)
    return found


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bodies of its own functions in place of their calls."""
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError) as error:
        first = next(iter(model.graph.node))
        reason = " ".join(str(error).split())
        msg = f"the model's functions, as {describe(first)} may call, cannot be put in place"
        raise InputError(f"{msg}: {reason:.200}") from error
