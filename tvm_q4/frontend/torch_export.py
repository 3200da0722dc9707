"""Import of `torch.export.ExportedProgram` (a ``.pt2`` file) into a Relax module of stage "qdq".

The exported graph is walked node by node. Shapes are computed here from the wanted batch and image
size, not taken from the recording. Names (see `tvm_q4.frontend.torch_names`):

* a convolution or linear layer has its module's path (``layer1.0.conv1``); the ``q4.quantize`` of
  its output, after an activation or not, is ``layer1.0.conv1.out``;
* a residual add is ``layer1.0.add``, a pool is ``maxpool`` and its quantization ``maxpool.out``,
  the quantized input is ``input``; a second quantization of one tensor ends in ``.q2``;
* ``q4.dequantize`` is the name of what it reads plus ``.dq``. For a layer's weight it is therefore
  ``layer1.0.conv1.weight.dq``, which is how passes find the layer's name;
* every float operator carries its name as the source name of its span, which
  `tvm_q4.frontend.torch_names.span_name` reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import tvm

from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.pt2_file import read_pt2
from tvm_q4.frontend.torch_graph import SYMBOLIC, GraphImporter
from tvm_q4.frontend.torch_names import describe, op_name
from tvm_q4.frontend.torch_ops import CONVERTERS, NO_OPERATION
from tvm_q4.meta import with_meta

_HINTS = {
    "fake_quant": "convert the trained model with torchao's convert_pt2e before exporting it",
    "choose_qparams": "use calibrated (static quantization) scales, dynamic ones are not supported",
}
_TRAINING = {
    "aten.batch_norm.default": 5,
    "aten._native_batch_norm_legit.default": 5,
    "aten.dropout.default": 2,
    "aten.dropout_.default": 2,
    "aten.feature_dropout.default": 2,
}
"""Operators with a training flag: its position, always recorded."""


def import_exported(
    program: torch.export.ExportedProgram,
    *,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    name: str = "model",
    facts: dict[str, Any] | None = None,
) -> tvm.IRModule:
    """Import an exported program as float operators between ``q4.quantize`` and ``q4.dequantize``.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        One float32 input [N, C, H, W] and one output; static or dynamic batch.
    batch : int or None
        Batch to specialise to; None is the recorded one, or 1 where it is dynamic.
    image_size : (int, int) or None
        Height and width to specialise to; None is the recorded size.
    name : str
        Name of the model, stored in the module's facts.
    facts : dict or None
        More facts to store (`tvm_q4.meta.model_meta`): ``transform``, ``classes``.

    Returns
    -------
    tvm.IRModule
        One function ``main(x)``, one dataflow block, static shapes.

    Raises
    ------
    UnsupportedError
        If the graph holds an operator, or a use of one, that cannot be expressed; the message names
        node, operator and source line.
    InputError
        If batch or image size do not fit the model.
    """
    _check_known(program.graph)
    _check_inference(program.graph)
    mod = GraphImporter(program, batch, image_size).run()
    stored = {
        "name": name,
        "source_format": "torch.export",
        "source_tool": f"torch {torch.__version__}",
    }
    return with_meta(mod, **(stored | (facts or {})))


def load_pt2_model(
    path: Path,
    *,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    require_quantized: bool = False,
) -> tvm.IRModule:
    """Read a ``.pt2`` file and import it; the parameters of `tvm_q4.frontend.load_model`.

    Raises
    ------
    InputError
        If the file cannot be read as a program, or is float and `require_quantized` is set.
    UnsupportedError
        As `import_exported`.
    """
    file = read_pt2(path)
    if require_quantized and not is_quantized(file.program):
        msg = f"'{path}' has no quantize nodes: it is a float model"
        raise InputError(f"{msg}; quantize it first: see tvm_q4.quantize.quantize_ptq")
    known = {key: file.metadata[key] for key in ("transform", "classes") if file.metadata.get(key)}
    details = {"quantization": "PT2E" if is_quantized(file.program) else "float"}
    if file.opset:
        details = {"opset": file.opset, **details}
    facts = {"sha256": file.sha256, "source_details": details, **known}
    if file.torch_version:
        facts["source_tool"] = f"torch {file.torch_version}"
    name = str(file.metadata.get("name") or path.stem)
    return import_exported(file.program, batch=batch, image_size=image_size, name=name, facts=facts)


def is_quantized(program: torch.export.ExportedProgram) -> bool:
    """Whether the graph holds any quantize or dequantize node."""
    return any("quantize_per_" in op_name(n) for n in program.graph.nodes)


def _check_inference(graph: torch.fx.Graph) -> None:
    """Refuse dropout and batch norm in training mode, before the counters that they update."""
    for node in graph.nodes:
        at = _TRAINING.get(op_name(node))
        if at is not None and node.args[at]:
            msg = f"{describe(node)} was exported in training mode"
            raise UnsupportedError(f"{msg}; call model.eval() before torch.export")


def _is_known(node: Any) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    op = op_name(node)
    return op in CONVERTERS or op in NO_OPERATION or op == "getitem" or op in SYMBOLIC


def _check_known(graph: torch.fx.Graph) -> None:
    """Refuse the whole graph at once, with the number of nodes that have no converter."""
    unknown = [n for n in graph.nodes if not _is_known(n)]
    if not unknown:
        return
    kinds = sorted({op_name(n) for n in unknown})
    hint = next((h for key, h in _HINTS.items() if key in op_name(unknown[0])), "")
    count = f"{len(unknown)} nodes" if len(unknown) > 1 else "1 node"
    msg = f"{count} of the exported graph not supported ({', '.join(kinds)})"
    first = f"the first is {describe(unknown[0])}"
    raise UnsupportedError(f"{msg}; {first}; {hint or 'remove it from the model or replace it'}")
