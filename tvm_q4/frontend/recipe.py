"""Integer recipes: a folder with ``graph.json`` and ``model.npz``, a network in integers.

`read_recipe` takes our own format (``"format": "tvm-q4/recipe"``) and, where that key is absent,
the form of NVIDIA's MLPerf INT4 ResNet-50. `write_recipe` writes ours. Neither uses pickle.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.recipe_build import build_module
from tvm_q4.frontend.recipe_export import export_document
from tvm_q4.frontend.recipe_nvidia import translate
from tvm_q4.frontend.recipe_schema import ARRAY_FILE, FORMAT, GRAPH_FILE, VERSION

_DAMAGE = (
    ValueError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip

Arrays = dict[str, NDArray[Any]]


def read_recipe(
    folder: str | Path, *, batch: int | None = None, image_size: tuple[int, int] | None = None
) -> tvm.IRModule:
    """Read an integer recipe as a stage-2 module, operator by operator.

    Parameters
    ----------
    folder : str or Path
        Folder with ``graph.json`` and ``model.npz``.
    batch : int or None
        Batch of the module; a recipe has none of its own, None is 1.
    image_size : (int, int) or None
        Height and width of the input; None is the recipe's own.

    Returns
    -------
    tvm.IRModule
        Integer module; its q4 tensors have the recipe's names.

    Raises
    ------
    InputError
        If the folder, a file or a value in it is damaged or contradicts another.
    UnsupportedError
        If the recipe holds an operator, a form or a version that is not known.
    """
    folder = Path(folder)
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1")
    document, arrays = _load_graph(folder / GRAPH_FILE), _load_arrays(folder / ARRAY_FILE)
    if "format" not in document:
        document, arrays = translate(document, arrays, image_size)
    elif document["format"] != FORMAT or document.get("version") != VERSION:
        found = f"{document['format']!r} version {document.get('version')!r}"
        msg = (
            f"{folder / GRAPH_FILE}: format {found} is not {FORMAT!r} version {VERSION}; use "
            "the tvm-q4 of its time"
        )
        raise UnsupportedError(msg)
    return build_module(document, arrays, batch or 1, image_size)


def write_recipe(mod: tvm.IRModule, folder: str | Path) -> None:
    """Write a stage-2 module as a recipe; the folder appears only when it is complete.

    Parameters
    ----------
    mod : tvm.IRModule
        Integer module: q4 operators and data movement, before fusion.
    folder : str or Path
        Created; an existing recipe there is replaced.

    Raises
    ------
    InputError
        If the folder holds other things or cannot be written.
    UnsupportedError
        If the module holds an operator that is not integer (it is named).
    """
    folder = Path(folder)
    document, arrays = export_document(mod)
    _check_destination(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            fresh = Path(scratch) / "recipe"
            fresh.mkdir()
            (fresh / GRAPH_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            np.savez_compressed(fresh / ARRAY_FILE, **arrays)
            if folder.exists():
                shutil.move(folder, Path(scratch) / "replaced")
            fresh.rename(folder)
    except OSError as error:
        msg = f"recipe folder {folder} cannot be written: {error.strerror or error}"
        raise InputError(msg) from error


def _check_destination(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the recipe")
    if folder.is_dir():
        others = sorted(p.name for p in folder.iterdir() if p.name not in (GRAPH_FILE, ARRAY_FILE))
        if others:
            msg = (
                f"folder {folder} holds {others[0]!r}, which is no recipe; name an empty or a "
                "new folder"
            )
            raise InputError(msg)


def _load_graph(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        detail = str(error).splitlines()[0]
        raise InputError(f"{path} is damaged, no valid JSON: {detail}; copy it again") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}; a recipe is an object")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        keys = [k for k, _ in pairs]
        twice = next(k for k in keys if keys.count(k) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return out


def _load_arrays(path: Path) -> Arrays:
    name = "file"
    try:
        with np.load(path, allow_pickle=False) as data:
            if not isinstance(data, np.lib.npyio.NpzFile):
                raise InputError(f"{path} is no .npz archive; a recipe's arrays are one")
            out = {}
            for name in data.files:
                out[name] = np.ascontiguousarray(data[name]).reshape(data[name].shape)
            return out
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is damaged at {name!r}: {detail}; copy it again") from error
