"""What reads files: for each kind a good file, how to damage it, and the function that reads it.

Run as a program, it damages and reads `count` files, and ends with the traceback of the first one
that comes out as anything but one of tvm-q4's own errors, or that takes longer than `SECONDS`.
"""

from __future__ import annotations

import faulthandler
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import mutate
from tvm_q4.errors import Q4Error

_ROOM = 12000
SECONDS = 60
"""Limit for one file; the slowest good one takes less than one second."""


@dataclass(frozen=True)
class Reader:
    """A kind of file.

    Attributes
    ----------
    make : function
        Writes a good file into a folder and returns what `read` takes.
    file : str
        Path of the file to damage, below the folder.
    damage : function
        Changes its bytes.
    read : function
    """

    make: Callable[[Path], Path]
    file: str
    damage: Callable[[bytes, Random], bytes]
    read: Callable[[Path], Any]


def _on_text(function: Callable[[str, Random], bytes]) -> Callable[[bytes, Random], bytes]:
    return lambda data, rng: function(data.decode(), rng)


def _onnx(style: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from tests.fuzz.onnx_file import write_model

        return write_model(folder / "model.onnx", style)

    return make


def _pt2(folder: Path) -> Path:
    import torch

    from tests.frontend.graphs import Lambda, export, fake_quantized

    def forward(m: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.conv(fake_quantized(x, 0.1, -128, 127))

    path = folder / "model.pt2"
    torch.export.save(export(Lambda(forward, conv=torch.nn.Conv2d(3, 4, 3)), 1, 3, 8, 8), path)
    return path


def _with_program(data: bytes, rng: Random) -> bytes:
    """A ``.pt2`` archive, one of whose JSON files is damaged."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = rng.choice([n for n in old.namelist() if n.endswith(".json")])
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, mutate.text_of(content.decode(), rng) if name == chosen else content)
    return out.getvalue()


def _recipe(folder: Path) -> Path:
    from tests import small_network
    from tvm_q4.frontend.recipe import write_recipe
    from tvm_q4.relay_passes.pipeline import to_integer

    write_recipe(to_integer(small_network.quantized()), folder / "recipe")
    return folder / "recipe"


def _bit_config(folder: Path) -> Path:
    from tests.data.test_verify_zoo import MIXED

    return _written(folder / "bits.json", MIXED)


def _written(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _tuning_log(folder: Path) -> Path:
    from tests.tuning_logs.test_records import BASE, write

    return write(folder / "log.jsonl", BASE, BASE | {"arch": "sm_75"}, BASE | {"checked": False})


def _library(folder: Path) -> Path:
    from tests.library import tiny

    return tiny.write(folder / "tiny.so", padding="x" * _ROOM)


def _with_metadata(data: bytes, rng: Random) -> bytes:
    """A library whose metadata is damaged; the section keeps its size, for its key ``padding``."""
    first = data.index(b'{"format"')
    text = data[first:].split(b"\0", 1)[0]
    document = json.loads(text)
    del document["padding"]
    damaged = mutate.text_of(json.dumps(document), rng)[: len(text)]
    return data[:first] + damaged.ljust(len(text)) + data[first + len(text) :]


def _inspected(path: Path) -> None:
    """Read a model or a library, and print the report as ``tvm-q4 inspect`` does."""
    from rich.console import Console

    import tvm_q4
    from tvm_q4.cli.inspect import _show

    _show(Console(file=io.StringIO(), highlight=False, markup=False), tvm_q4.inspect(path))


def _read_bits(path: Path) -> Any:
    from tvm_q4.quantize.config import load_bit_config

    return load_bit_config(str(path))


def _read_log(path: Path) -> Any:
    from tvm_q4.tuning_logs.records import best_records

    return best_records([path], "x86-64")


ONNX = ("QDQ", "QCDQ", "QOperator", "QONNX")
READERS: dict[str, Reader] = {
    **{
        f"onnx-{style}": Reader(_onnx(style), "model.onnx", mutate.onnx_of, _inspected)
        for style in ONNX
    },
    "pt2": Reader(_pt2, "model.pt2", _with_program, _inspected),
    "recipe-graph": Reader(_recipe, "recipe/graph.json", _on_text(mutate.text_of), _inspected),
    "recipe-arrays": Reader(_recipe, "recipe/model.npz", mutate.bytes_of, _inspected),
    "bit-config": Reader(_bit_config, "bits.json", _on_text(mutate.text_of), _read_bits),
    "library": Reader(_library, "tiny.so", _with_metadata, _inspected),
    "tuning-log": Reader(_tuning_log, "log.jsonl", _on_text(mutate.lines_of), _read_log),
}


def run(name: str, first: int, count: int) -> int:
    """Damage and read `count` files with the seeds from `first`; how many were refused.

    Any exception that is not one of ours goes on, with the seed in its notes.
    """
    reader, refused = READERS[name], 0
    with tempfile.TemporaryDirectory() as scratch:
        source = reader.make(Path(scratch))
        file = Path(scratch) / reader.file
        good = file.read_bytes()
        reader.read(source)
        for seed in range(first, first + count):
            file.write_bytes(reader.damage(good, Random(seed)))
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                reader.read(source)
            except Q4Error as error:
                refused += 1
                text = str(error)
                assert text and "\n" not in text, f"seed {seed} of {name}: {text!r}"
            except BaseException as error:
                error.add_note(f"this was seed {seed} of {name}")
                raise
            finally:
                faulthandler.cancel_dump_traceback_later()
    return refused


if __name__ == "__main__":
    faulthandler.enable()
    print(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
