"""Reports on models and libraries: the verb ``inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tvm_q4.errors import InputError

METADATA_FILE = "metadata.json"


def inspect(
    source: str | Path,
    *,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    arch: str | None = None,
    hawq_config: str | Path | None = None,
    hawq_rounding: str | None = None,
    recipe: str | Path | None = None,
    extract: str | Path | None = None,
) -> dict[str, Any]:
    """Describe a model or a library without running it.

    Parameters
    ----------
    source : str or Path
        A library (``.so``), or a model as `tvm_q4.compile` takes it; float models too.
    batch, image_size, seed, arch, hawq_config, hawq_rounding
        As for `tvm_q4.compile`; models only.
    recipe : path, optional
        Folder to write the model to as an integer recipe.
    extract : path, optional
        Folder to write a library's ``metadata.json`` to, and its device code: for each family a
        ``.fatbin``, for each arch a ``.cubin``, and the ``.ptx``.

    Returns
    -------
    dict
        ``kind`` ("library" or "model"), ``path``, ``bytes`` (file size, None for folders and
        ``zoo:`` models), ``metadata`` (a library's as stored; a model's with ``layers``,
        ``float_ops``, ``input`` and ``output`` in the same form), ``totals`` (see `totals`) and
        ``notes`` (how a CUDA library's int4 layers run on each of its archs, and warnings).

    Raises
    ------
    InputError
        If there is no such file, or an option does not fit what `source` is.
    LibraryError
        If a library's metadata cannot be read.
    """
    path = Path(source)
    if is_library(path):
        if recipe is not None:
            raise InputError(f"'{source}' is a library; --recipe takes a model")
        metadata = _library_metadata(path, extract)
    else:
        if extract is not None:
            raise InputError(f"'{source}' is a model; --extract takes a library")
        hawq = {"arch": arch, "hawq_config": hawq_config, "hawq_rounding": hawq_rounding}
        options = {"batch": batch, "image_size": image_size, "seed": seed, **hawq}
        metadata = _model_metadata(str(source), options, recipe)
    return {
        "kind": "library" if is_library(path) else "model",
        "path": str(source),
        "bytes": path.stat().st_size if path.is_file() else None,
        "metadata": metadata,
        "totals": totals(metadata["layers"]),
        "notes": _notes(metadata),
    }


def is_library(path: Path) -> bool:
    """Whether `path` is to be read as a library: its name ends in .so, or it is an ELF file."""
    if path.suffix == ".so":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def totals(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over layers: ``layers``, ``params``, ``macs``, ``bops`` and ``weight_bytes``."""
    keys = ("params", "macs", "bops", "weight_bytes")
    return {"layers": len(layers)} | {key: sum(layer[key] for layer in layers) for key in keys}


def _library_metadata(path: Path, extract: str | Path | None) -> dict[str, Any]:
    from tvm_q4.library import read_metadata

    metadata = read_metadata(path)
    if extract is not None:
        from tvm_q4.library.device_code import write_device_code

        _write(Path(extract), metadata)
        write_device_code(path, extract)
    return metadata


def _notes(metadata: dict[str, Any]) -> list[str]:
    if metadata.get("target", {}).get("kind") != "cuda":
        return []
    from tvm_q4.cuda_target import int4_note
    from tvm_q4.library.cuda_device import emulated_int4, has_int4

    if not has_int4(metadata["layers"]):
        return []
    warning = emulated_int4(metadata, 90)
    return [int4_note(arch) for arch in metadata["target"]["archs"]] + [
        f"warning: {text}" for text in (warning,) if text
    ]


def _write(folder: Path, metadata: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        where = folder / METADATA_FILE
        msg = f"cannot write '{where}': {error.strerror}; give --extract a writable folder"
        raise InputError(msg) from error


def _model_metadata(
    spec: str, options: dict[str, Any], recipe: str | Path | None
) -> dict[str, Any]:
    from tvm_q4.frontend import load_model
    from tvm_q4.model_report import describe_model
    from tvm_q4.relay_passes.pipeline import to_integer

    mod = to_integer(load_model(spec, **options))
    if recipe is not None:
        from tvm_q4.frontend.recipe import write_recipe

        write_recipe(mod, recipe)
    return describe_model(mod)
