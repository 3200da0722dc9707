"""What `cuda_build.py` writes and `cuda_resnet.py` reads: libraries with their expected results.

A bundle is a folder, or a ``.tar.xz`` of one, with ``bundle.json`` and the files that it names. Its
cases share most of their bytes (a network's weights are the same at each batch), which xz finds in
one pass because its dictionary is larger than a library.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

INDEX = "bundle.json"
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 64 << 20}]


@dataclass
class Case:
    """A library and what it must compute.

    Attributes
    ----------
    model, config : str
        Zoo network and precision, such as ``resnet50`` and ``uniform8``.
    batch : int
    library, logits : str
        File names in the bundle: the ``.so``, and the expected result as ``.npy``.
    input_sha256 : str
        Of the input's bytes (see `make_input`).
    tensors : dict
        SHA-256 of each tensor that the reference stores, by name; empty for large batches.
    """

    model: str
    config: str
    batch: int
    library: str
    logits: str
    input_sha256: str
    tensors: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as ``resnet50-uniform8-b8``."""
        return f"{self.model}-{self.config}-b{self.batch}"


def make_input(metadata: Mapping[str, Any], seed: int = 0) -> NDArray[np.float32]:
    """One batch of noise: the same bits with any NumPy and on any machine."""
    shape = tuple(metadata["input"]["shape"])
    uniform = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return (uniform - np.float32(0.5)) * np.float32(5)


def digest(array: NDArray) -> str:
    """SHA-256 of an array's dtype, shape and values."""
    content = np.ascontiguousarray(array)
    head = f"{content.dtype} {content.shape}".encode()
    return hashlib.sha256(head + content.tobytes()).hexdigest()


def write_index(folder: Path, target: str, cases: list[Case]) -> None:
    """Write ``bundle.json``."""
    content = {"target": target, "cases": [asdict(case) for case in cases]}
    (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n")


def read_index(folder: Path) -> list[Case]:
    """Cases of a bundle's folder."""
    return [Case(**entry) for entry in json.loads((folder / INDEX).read_text())["cases"]]


def pack(folder: Path, archive: Path) -> None:
    """Write the folder's files into a ``.tar.xz``."""
    with (
        lzma.open(archive, "wb", filters=_FILTERS) as stream,
        tarfile.open(fileobj=stream, mode="w") as tar,
    ):
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)


@contextmanager
def opened(bundle: Path) -> Iterator[Path]:
    """Folder of a bundle; of an archive, a temporary one."""
    if bundle.is_dir():
        yield bundle
        return
    with TemporaryDirectory(prefix="cuda_bundle_") as folder:
        with tarfile.open(bundle, "r:xz") as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder)
