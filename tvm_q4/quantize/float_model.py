"""Float models as `quantize` takes them: a program, its input and the facts stored beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.pt2_file import read_pt2
from tvm_q4.frontend.torch_export import import_exported, is_quantized
from tvm_q4.frontend.zoo import ZOO, build_program, parse_spec
from tvm_q4.library.inputs import InputSpec
from tvm_q4.relay_passes._rewrite import shape_of

_KEPT = ("name", "transform", "classes")


@dataclass(frozen=True)
class FloatModel:
    """A float classifier, ready to be quantized.

    Parameters
    ----------
    program : ExportedProgram
    metadata : dict
        ``name``, and ``transform`` and ``classes`` where the model tells them.
    input : InputSpec
        float32 [N, C, H, W]; N is the batch that the program was exported with, 1 where any fits.
    batch : int or None
        The only batch that the program takes; None where it takes any.
    """

    program: ExportedProgram
    metadata: dict[str, Any]
    input: InputSpec
    batch: int | None

    @property
    def example(self) -> tuple[Tensor]:
        """A batch of zeros, of two images where any batch fits: torch specialises one."""
        return (torch.zeros(self.batch or 2, *self.input.shape[1:]),)


def load_float_model(model: str | Path, seed: int = 0) -> FloatModel:
    """Load a float model and see that its quantized form can be compiled.

    Parameters
    ----------
    model : str or Path
        A ``.pt2`` file or ``zoo:NAME``.
    seed : int
        Seed of the random weights of ``zoo:`` models.

    Raises
    ------
    InputError
        If there is no such model, or it is damaged or quantized already.
    UnsupportedError
        If it is of another format, or holds an operator that cannot be compiled.
    """
    program, metadata = _read_zoo(str(model), seed) if _is_zoo(model) else _read_file(Path(model))
    if is_quantized(program):
        raise InputError(f"'{model}' is quantized already; give the float model that it was")
    mod = import_exported(program)
    first = mod["main"].params[0]
    shape = shape_of(first)
    if len(shape) != 4:
        raise UnsupportedError(f"'{model}' takes {len(shape)} axes; images [N, C, H, W] are needed")
    spec = InputSpec(str(first.name), shape, "float32", None, None)
    return FloatModel(program, metadata, spec, _fixed_batch(program))


def _is_zoo(model: str | Path) -> bool:
    return str(model).startswith("zoo:")


def _read_zoo(spec: str, seed: int) -> tuple[ExportedProgram, dict[str, Any]]:
    name, config = parse_spec(spec)
    if config is not None:
        raise InputError(f"'{spec}' is quantized already; give zoo:{name}, and the bits as config")
    metadata = {"name": name, "transform": ZOO[name].transform}
    return build_program(name, None, seed), metadata


def _read_file(path: Path) -> tuple[ExportedProgram, dict[str, Any]]:
    if not path.exists():
        raise InputError(f"model '{path}' does not exist; give a float .pt2 file or zoo:NAME")
    if path.suffix != ".pt2" or path.is_dir():
        msg = f"'{path}' is not a .pt2 file; quantize takes a float model of torch.export"
        raise UnsupportedError(f"{msg} (save it with tvm_q4.quantize.save_program) or zoo:NAME")
    file = read_pt2(path)
    metadata = {key: file.metadata[key] for key in _KEPT if file.metadata.get(key)}
    return file.program, {"name": path.stem, **metadata}


def _fixed_batch(program: ExportedProgram) -> int | None:
    name = program.graph_signature.user_inputs[0]
    node = next(n for n in program.graph.nodes if n.name == name)
    size = node.meta["val"].shape[0]
    return size if isinstance(size, int) else None
