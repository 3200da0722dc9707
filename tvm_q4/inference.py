"""One inference from files to files: the verb ``run``."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.data import load_image
from tvm_q4.errors import InputError
from tvm_q4.library import Library, load


def run_file(
    library: Library | str | Path,
    *,
    input_file: str | Path | None = None,
    image: str | Path | None = None,
    transform: str | None = None,
    output: str | Path | None = None,
    top: int = 5,
    dump_layers: str | Path | None = None,
) -> dict[str, Any]:
    """Run a library on a ``.npy`` file or an image.

    Parameters
    ----------
    library : Library, str or Path
    input_file : path, optional
        ``.npy`` with [N, C, H, W], float32 or the quantized input's type.
    image : path, optional
        Image file; exactly one of the two must be given.
    transform : str, optional
        For `image`; the one that the library's metadata names where None.
    output : path, optional
        ``.npy`` for the result.
    top : int
        How many classes of each image to report.
    dump_layers : path, optional
        Folder for every stored tensor, ``NAME.npy``.

    Returns
    -------
    dict
        ``shape`` and ``dtype`` of the result, ``top`` (for each image a list of ``{"class",
        "name", "logit"}``; empty where the result is not [N, classes]), ``output`` and
        ``dump_layers`` (paths or None).

    Raises
    ------
    InputError
        If the input cannot be used or a file cannot be written.
    """
    if (input_file is None) == (image is None):
        raise InputError("give one input: either --input X.npy or --image FILE")
    lib = library if isinstance(library, Library) else load(library)
    x = read_array(Path(input_file)) if input_file is not None else _image(lib, image, transform)
    if dump_layers is None:
        result = lib.run(x)
    else:
        tensors = lib.trace(x)
        result = tensors[lib.metadata["output"]["name"]]
        write_tensors(tensors, Path(dump_layers))
    if output is not None:
        _save(result, Path(output))
    ranked = _top(lib, result, top) if result.ndim == 2 else []
    return {
        "shape": list(result.shape),
        "dtype": str(result.dtype),
        "top": ranked,
        "output": None if output is None else str(output),
        "dump_layers": None if dump_layers is None else str(dump_layers),
    }


def write_tensors(tensors: dict[str, NDArray], folder: Path) -> None:
    """Write each tensor to ``folder/NAME.npy``, characters that file names cannot have as ``_``.

    Raises
    ------
    InputError
        If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"'{folder}' cannot be written: {error.strerror}; choose another folder"
        raise InputError(msg) from None
    for name, tensor in tensors.items():
        safe = re.sub(r"[^\w.-]", "_", name)
        _save(tensor, folder / f"{safe}.npy")


def read_array(path: Path) -> NDArray:
    """The array in a ``.npy`` file; one that holds Python objects is refused.

    Raises
    ------
    InputError
        If the file is missing or is no such file.
    """
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        msg = f"input '{path}' cannot be read as .npy: {reason}"
        raise InputError(msg) from None


def _image(lib: Library, image: str | Path | None, transform: str | None) -> NDArray[np.float32]:
    assert image is not None
    return load_image(image, lib.input, transform or lib.metadata["input"]["transform"])


def _save(array: NDArray, path: Path) -> None:
    """Write a ``.npy`` file that appears only when it is complete."""
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            partial = Path(folder) / "array.npy"
            np.save(partial, array, allow_pickle=False)
            partial.replace(path)
    except OSError as error:
        msg = f"output '{path}' cannot be written: {error.strerror}; choose another name"
        raise InputError(msg) from None


def _top(lib: Library, result: NDArray, count: int) -> list[list[dict[str, Any]]]:
    logits, classes = lib.logits(result), lib.metadata["classes"]
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [
            {"class": int(k), "name": classes[k] if classes else None, "logit": float(row[k])}
            for k in best
        ]
        for row, best in zip(logits, order, strict=True)
    ]
