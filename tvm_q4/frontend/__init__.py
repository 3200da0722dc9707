"""Frontends: from a model's name or file to a Relax module."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import tvm

from tvm_q4.errors import EnvironmentMismatch, InputError
from tvm_q4.meta import model_meta, with_meta

__all__ = ["load_model"]

_EXTRAS = {"torch": "torch", "torchvision": "torch", "torchao": "torch", "onnx": "onnx"}
"""The extra that installs each optional package."""
_HAWQ_SUFFIXES = (".tar", ".pth")


def load_model(
    spec: str | Path,
    *,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    require_quantized: bool = False,
    arch: str | None = None,
    hawq_config: str | Path | None = None,
    hawq_rounding: str | None = None,
) -> tvm.IRModule:
    """Load a model from whatever form it has.

    Parameters
    ----------
    spec : str or Path
        A ``.pt2`` file, the folder of an integer recipe, a HAWQ checkpoint (``.pth.tar``), or
        ``zoo:NAME[@CONFIG]``.
    batch : int or None
        Batch to specialise to; None is the model's own (1 where it is dynamic).
    image_size : (int, int) or None
        Height and width to specialise to; None is the model's own.
    seed : int
        Seed of the random weights of ``zoo:`` models.
    require_quantized : bool
        Refuse float models.
    arch, hawq_config, hawq_rounding : str or None
        What a HAWQ checkpoint does not tell; see `tvm_q4.frontend.hawq.load_hawq_model`.

    Returns
    -------
    tvm.IRModule
        Stage "qdq" (float operators between quantize and dequantize) or, from a recipe, "integer".

    Raises
    ------
    InputError
        If there is no such model, or it is damaged, or float where it must not be.
    UnsupportedError
        If the model holds what tvm-q4 cannot express.
    EnvironmentMismatch
        If the model's format needs a package that is not installed.
    """
    text = str(spec)
    _check_sizes(batch, image_size)
    hawq = {"arch": arch, "config": hawq_config, "rounding": hawq_rounding}
    given = {key: value for key, value in hawq.items() if value is not None}
    if given and not text.endswith(_HAWQ_SUFFIXES):
        what = ", ".join(f"{key} '{value}'" for key, value in given.items())
        raise InputError(f"model '{text}' is no HAWQ checkpoint ({what} was given); drop that")
    if text.startswith("zoo:"):
        return _lazy("zoo").load_zoo(
            text, batch=batch, image_size=image_size, seed=seed, require_quantized=require_quantized
        )
    path = Path(text)
    if not path.exists():
        raise InputError(
            f"model '{text}' does not exist; give a .pt2 or .onnx file, a recipe folder or zoo:NAME"
        )
    if path.is_dir():
        return _load_folder(path, batch, image_size)
    if path.name.endswith(_HAWQ_SUFFIXES):
        return _lazy("hawq").load_hawq_model(path, batch=batch, image_size=image_size, **given)
    if path.suffix == ".onnx":
        return _lazy("onnx_qdq").load_onnx_model(
            path, batch=batch, image_size=image_size, require_quantized=require_quantized
        )
    return _lazy("torch_export").load_pt2_model(
        path, batch=batch, image_size=image_size, require_quantized=require_quantized
    )


def _check_sizes(batch: int | None, image_size: tuple[int, int] | None) -> None:
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1")
    if image_size is not None and (len(image_size) != 2 or min(image_size) < 1):
        raise InputError(
            f"image size is {image_size}; it must be two positive numbers, height and width"
        )


def _load_folder(path: Path, batch: int | None, image_size: tuple[int, int] | None) -> tvm.IRModule:
    if not (path / "graph.json").is_file():
        raise InputError(
            f"folder '{path}' has no graph.json; an integer recipe has graph.json and model.npz"
        )
    mod = _lazy("recipe").read_recipe(path, batch=batch, image_size=image_size)
    known = "source_format" in model_meta(mod)  # of the model that the recipe was made from
    return mod if known else with_meta(mod, source_format="tvm-q4/recipe")


def _lazy(module: str) -> Any:
    """Import a frontend when it is asked for: the base install has no torch."""
    try:
        return importlib.import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        msg = f'this model needs {error.name}; install it with: pip install "tvm-q4[{extra}]"'
        raise EnvironmentMismatch(msg) from error
