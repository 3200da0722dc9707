"""The two files that HAWQ-V3's trainer writes, read without running anything that they hold.

``quantized_checkpoint.pth.tar`` is a dict of five dicts of tensors; ``checkpoint.pth.tar`` has the
whole ``state_dict`` and the architecture's name. Keys begin with ``module.`` or not (DataParallel).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tvm_q4.errors import InputError
from tvm_q4.frontend.hawq.architecture import OUTPUT, Architecture

Arrays = dict[str, NDArray[Any]]

GROUPS = (
    "convbn_scaling_factor",
    "fc_scaling_factor",
    "weight_integer",
    "bias_integer",
    "act_scaling_factor",
)
PLACEHOLDERS = ("pre_weight_scaling_factor", "identity_weight_scaling_factor")
BATCH_NORM = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
_PREFIX = "module."
_CODE = re.compile(r"GLOBAL `?([\w.]+)|[Uu]nsupported class ([\w.]+)|unrecognized function (\S+)")


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by key without prefix, and what else it says.

    `kind` is ``quantized_checkpoint`` or ``checkpoint``; `where` names the file in errors.
    """

    where: str
    kind: str
    arch: str | None
    tensors: dict[str, torch.Tensor]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; nothing but tensors and plain values is unpickled.

    Raises
    ------
    InputError
        If the file is missing, damaged, something else, or holds pickled code.
    """
    where = f"HAWQ checkpoint '{path}'"
    content = _unpickle(Path(path), where)
    if not isinstance(content, dict):
        raise InputError(f"{where} holds a {type(content).__name__}; expected a dict of tensors")
    if set(GROUPS) <= set(content):
        found: dict[Any, Any] = {}
        for group in GROUPS:
            found |= _tensors(content[group], f"{where}, '{group}'")
        return Checkpoint(where, "quantized_checkpoint", None, _without_prefix(found))
    if "state_dict" in content:
        tensors = _tensors(content["state_dict"], f"{where}, 'state_dict'")
        arch = content.get("arch")
        stated = arch if isinstance(arch, str) else None
        return Checkpoint(where, "checkpoint", stated, _without_prefix(tensors))
    missing = next((g for g in GROUPS if g not in content), "")
    keys = ", ".join(repr(k) for k in list(content)[:3])
    msg = f"{where} has neither 'state_dict' nor all five groups ('{missing}' is missing)"
    raise InputError(f"{msg}; its keys begin with {keys or 'nothing'}")


def _unpickle(path: Path, where: str) -> Any:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch reports damaged files with many exception types
        code = _CODE.search(str(error))
        if code:
            name = next(g for g in code.groups() if g)
            msg = f"{where} holds the pickled object {name}, which is not read for safety"
            raise InputError(f"{msg}; save tensors and plain values only") from error
        msg = f"{where} is damaged or is no file of torch.save ({type(error).__name__})"
        raise InputError(f"{msg}; copy it again") from error


def _tensors(group: Any, where: str) -> dict[Any, Any]:
    if not isinstance(group, dict) or not all(
        isinstance(k, str) and isinstance(t, torch.Tensor) for k, t in group.items()
    ):
        raise InputError(f"{where} is not a dict from names to tensors; save it as HAWQ does")
    return dict(group)


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if all(key.startswith(_PREFIX) for key in tensors):
        return {key.removeprefix(_PREFIX): t for key, t in tensors.items()}
    return tensors


def checked_arrays(file: Checkpoint, arch: Architecture) -> Arrays:
    """Arrays of a file that holds what `arch` needs, in the right shapes, and nothing else.

    Integers that the trainer derives from float weights may be absent where those are there.

    Raises
    ------
    InputError
        Naming the first key that is missing, unexpected or of a wrong shape or type.
    """
    required, optional = _expected(file, arch)
    shapes = required | optional
    missing = [key for key in required if key not in file.tensors]
    unexpected = [key for key in file.tensors if key not in shapes]
    if missing:
        msg = f"{file.where} lacks {len(missing)} tensors of {arch.name}, first '{missing[0]}'"
        raise InputError(f"{msg}{_also(unexpected)}; give the right --arch or another file")
    if unexpected:
        msg = f"{file.where} holds {len(unexpected)} tensors that {arch.name} does not have"
        raise InputError(f"{msg}, first '{unexpected[0]}'; give the right --arch or another file")
    return {k: _array(t, k, shapes[k], file.where) for k, t in file.tensors.items()}


def _also(unexpected: list[str]) -> str:
    return f" and has '{unexpected[0]}' instead" if unexpected else ""


Shapes = dict[str, list[tuple[int, ...]]]


def _expected(file: Checkpoint, arch: Architecture) -> tuple[Shapes, Shapes]:
    """Shapes that each key may have: of the keys that must be there, and of the others."""
    single: list[tuple[int, ...]] = [(1,), ()]
    required: Shapes = {}
    optional: Shapes = {}
    whole = file.kind == "checkpoint"
    integers = optional if whole else required
    for conv in arch.convs():
        channels = (conv.out_channels,)
        required[f"{conv.name}.convbn_scaling_factor"] = [channels, *single]
        integers[f"{conv.name}.weight_integer"] = [conv.shape]
        integers[f"{conv.name}.bias_integer"] = [channels]
        if whole:
            required[f"{conv.name}.conv.weight"] = [conv.shape]
            required |= {f"{conv.name}.{key}": [channels] for key in BATCH_NORM}
            optional[f"{conv.name}.bn.num_batches_tracked"] = single
    classes = _classes(file)
    required[f"{OUTPUT}.fc_scaling_factor"] = [(classes,), *single]
    integers[f"{OUTPUT}.weight_integer"] = [(classes, arch.features)]
    integers[f"{OUTPUT}.bias_integer"] = [(classes,)]
    if whole:
        required[f"{OUTPUT}.weight"] = [(classes, arch.features)]
        required[f"{OUTPUT}.bias"] = [(classes,)]
    for act in dict.fromkeys([*arch.reads().values(), *arch.streams()]):
        required[f"{act}.act_scaling_factor"] = single
        if whole:
            required |= {f"{act}.x_min": single, f"{act}.x_max": single}
            optional |= {f"{act}.{key}": single for key in PLACEHOLDERS}
    return required, optional


def _classes(file: Checkpoint) -> int:
    """Classes, as the linear layer's weight tells them; shapes are checked against it."""
    for key in ("weight_integer", "weight"):
        weight = file.tensors.get(f"{OUTPUT}.{key}")
        if weight is not None and weight.dim() == 2 and len(weight):
            return len(weight)
    return 1000


def _array(
    tensor: torch.Tensor, key: str, shapes: list[tuple[int, ...]], where: str
) -> NDArray[Any]:
    shape = tuple(tensor.shape)
    if shape not in shapes:
        expected = " or ".join(str(list(s)) for s in shapes)
        raise InputError(f"{where}: '{key}' has shape {list(shape)}, expected {expected}")
    if key.endswith("num_batches_tracked"):
        return np.zeros(0)
    if tensor.dtype != torch.float32 or tensor.layout != torch.strided or tensor.is_meta:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{where}: '{key}' is a {kind} tensor, expected dense float32")
    array = np.ascontiguousarray(tensor.detach().numpy()).reshape(shape)
    if not np.isfinite(array).all():
        raise InputError(f"{where}: '{key}' holds values that are not finite; use another file")
    if key.endswith(PLACEHOLDERS) and (array != 1).any():
        raise InputError(f"{where}: '{key}' is {array.item()!r}, but HAWQ keeps it at 1")
    if key.endswith("scaling_factor") and (array <= 0).any():
        raise InputError(f"{where}: '{key}' holds a scale that is not positive; use another file")
    if key.endswith("running_var") and (array < 0).any():
        raise InputError(f"{where}: '{key}' holds a negative variance; use another file")
    return array
